"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from problems import CASES, Case


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in a folder of its own: Python started in the source tree would import that tree."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()
