"""Fixtures shared by all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from problems import CASES, Case

from hvp_engine.kernels import registry


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in a folder of its own: Python started in the source tree would import that tree."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def own_search_path() -> Iterator[None]:
    """Let what a test adds to the places of modules, as loading a job file does, reach neither others nor processes."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(autouse=True)
def fresh_choice_of_backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no test see what another one pretended about devices; what it pretends itself is undone after this."""
    registry.forget_choices()
    yield
    registry.forget_choices()


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let what a test runs have one thread, which is fastest for the smallest models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
