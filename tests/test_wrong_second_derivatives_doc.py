"""The reproductions in docs/wrong_second_derivatives.md: each fails when PyTorch mends what it shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pages import code_blocks

from hvp_engine.operators.known_wrong import KNOWN_WRONG

DOCUMENT = Path(__file__).parents[1] / "docs" / "wrong_second_derivatives.md"
PRELUDE, *REPRODUCTIONS = code_blocks(DOCUMENT, "python")
TITLES = re.findall(r"^## (.*)$", DOCUMENT.read_text(), re.MULTILINE)[:-1]


def test_every_section_but_the_last_has_one_reproduction() -> None:
    assert len(TITLES) == len(REPRODUCTIONS)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("number", range(len(REPRODUCTIONS)), ids=TITLES)
def test_the_derivative_is_still_wrong(number: int) -> None:
    namespace: dict[str, Any] = {}
    PRELUDE.execute(namespace)
    if TITLES[number].startswith("batch_norm"):  # uses the loss of the section before
        REPRODUCTIONS[number - 1].execute(namespace)
    REPRODUCTIONS[number].execute(namespace)


def test_the_document_names_every_operation_of_the_table() -> None:
    text = DOCUMENT.read_text()
    for known in KNOWN_WRONG.values():
        assert known.operation.partition(" ")[0] in text
