"""The fixture under which a test's Triton launches are interpreted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from interpreter import Guard, interpreted


@pytest.fixture
def interpreter() -> Iterator[Guard]:
    """Interprets every Triton launch of the test; give tensors behind address tables to its ``reach``."""
    with interpreted() as guard:
        yield guard
