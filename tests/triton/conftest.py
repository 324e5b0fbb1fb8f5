"""The fixtures under which a test's Triton launches are interpreted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interpreter import Guard, interpreted

from hvp_engine.kernels import registry

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))  # what the tests of all backends share


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test draws the same numbers, whichever tests run before it."""
    torch.manual_seed(0)


@pytest.fixture
def interpreter() -> Iterator[Guard]:
    """Interprets every Triton launch of the test; give tensors behind address tables to its ``reach``."""
    with interpreted() as guard:
        yield guard


@pytest.fixture
def on_triton(interpreter, monkeypatch) -> Iterator[None]:
    """Runs the package's operations on CPU tensors through their Triton kernels, and makes sure that they do."""
    launches = []
    start = interpreter.start_launch
    monkeypatch.setattr(interpreter, "start_launch", lambda arguments: (launches.append(None), start(arguments)))
    monkeypatch.setattr(registry, "_BACKENDS", (registry.Backend("triton", lambda device: None),))
    registry.forget_choices()
    yield
    assert launches, "the test launched no Triton kernel"
