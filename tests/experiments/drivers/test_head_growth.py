"""D18 at the size of seconds: a head of many classes grows under SignSGD, and the claim can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvp_engine.experiments.drivers import head_growth
from hvp_engine.experiments.registry import Setting, find
from hvp_engine.experiments.result import Result


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return head_growth.run(Setting("tiny", 1, tmp_path_factory.mktemp("out") / "head-growth"))


def test_the_head_of_many_classes_grows_under_signsgd(result: Result) -> None:
    assert result.holds, result.claims


def test_the_table_has_a_row_per_features_and_number_of_classes(result: Result) -> None:
    assert [row[:2] for row in result.table.rows] == [("Gaussian, offset 3", 5), ("Gaussian, offset 3", 500)]


def test_the_same_seed_gives_the_same_bits(result: Result, tmp_path: Path) -> None:
    assert head_growth.run(Setting("tiny", 1, tmp_path / "again")).table == result.table


def test_the_claim_fails_where_both_heads_grow_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(head_growth, "OPTIMIZERS", ("signum", "signsgd"))
    monkeypatch.setattr(head_growth, "STEPS", 1)
    result = head_growth.run(Setting("tiny", 1, tmp_path / "out"))
    assert not result.holds


def test_the_driver_is_found_by_its_name() -> None:
    assert find("head-growth").module == "head_growth"
