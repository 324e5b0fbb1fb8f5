"""D18 at the size of seconds: a head of many classes grows under SignSGD, and the claim can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hvp_engine.experiments.data.images import gaussian
from hvp_engine.experiments.drivers import head_growth
from hvp_engine.experiments.models.with_head import usual_head
from hvp_engine.experiments.registry import Setting, find
from hvp_engine.experiments.result import Result


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return head_growth.run(Setting("tiny", 1, tmp_path_factory.mktemp("out") / "head-growth"))


def test_the_head_of_many_classes_grows_under_signsgd(result: Result) -> None:
    assert result.holds, result.claims


@pytest.mark.parametrize("seed", range(3))
def test_the_head_starts_without_knowing_the_means_of_the_classes(seed: int) -> None:
    classes, features = 500, head_growth.FEATURES
    samples = gaussian(classes, features, 20_000, seed, spread=0.01)
    means = torch.stack([samples.inputs[samples.labels == label].mean(dim=0) for label in range(classes)])
    weights = usual_head(features, classes, seed).weight.detach()
    assert abs(np.corrcoef(means.flatten(), weights.flatten())[0, 1]) < 0.1


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
