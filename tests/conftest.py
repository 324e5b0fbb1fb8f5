"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest
from problems import CASES, Case


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()
