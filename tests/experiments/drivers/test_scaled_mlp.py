"""D5: scaling changes the blocks exactly as it should and the function not at all; the claims decide both ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo_entries import setting

from hvp_engine.api import hvp
from hvp_engine.experiments import run, scaled
from hvp_engine.experiments.blockwise import Blockwise, measure
from hvp_engine.experiments.drivers import scaled_mlp
from hvp_engine.experiments.gaps import Gap
from hvp_engine.experiments.training import Curve

FIRST = next(iter(scaled.PATTERNS))


def point(scale: int, sgd: float, adam: float) -> scaled.Point:
    curves = [
        tuple(Curve(np.full(20, loss * factor), np.ones(20)) for factor in (0.9, 1.0, 5.0)) for loss in (sgd, adam)
    ]
    return scaled.Point(FIRST, scale, Gap("mlp", *curves))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Blockwise]:
    asked = scaled_mlp.in_float64(setting(tmp_path_factory.mktemp("scaled"), seeds=1))
    return {scale: measure(asked, scaled.scaled(asked, FIRST, scale)) for scale in (1, 64)}


def test_the_function_stays_and_each_block_is_divided_by_its_factor_squared(tmp_path: Path) -> None:
    asked = setting(tmp_path)
    base, other = (scaled.scaled(asked, FIRST, scale) for scale in (1, 4))
    models = [entry.build(0) for entry in (base, other)]
    data = base.data(0).fixed
    assert torch.equal(models[0](data[0][0]), models[1](data[0][0]))
    for layer, factor in enumerate((4.0, 1.0, 1.0, 0.25)):
        block = {"layer": [f"layers.{layer}.weight"]}
        vector = torch.randn(models[0].layers[layer].weight.numel(), generator=torch.Generator().manual_seed(layer))
        products = [hvp(model, base.loss, {"layer": vector[None]}, block, data=data)["layer"] for model in models]
        torch.testing.assert_close(products[1] * factor**2, products[0], rtol=1e-4, atol=0.0)


def test_the_recurrences_show_the_scaling_and_notice_a_wrong_one(measured: dict[int, Blockwise]) -> None:
    right = scaled.largest_error(measured[1], measured[64], (64.0, 1.0, 1.0, 1 / 64))
    wrong = scaled.largest_error(measured[1], measured[64], (64.0, 1.0, 1.0, 1.0))
    assert right[0] <= 1e-4
    assert wrong[0] > 0.5


def test_no_block_is_lost_however_far_apart_the_scaling_takes_them(measured: dict[int, Blockwise]) -> None:
    assert all(len(row) == 4 for one in measured.values() for row in one.lambda_max)
    first, last = (measured[1].lambda_max[0][layer] for layer in (0, -1))
    assert scaled_mlp.ratios(measured[64]) == pytest.approx([64.0**4 * last / first], rel=1e-3)
    assert np.isfinite(measured[64].matrix[~np.eye(4, dtype=bool)]).all()


def test_the_claims_decide_by_medians_and_can_fail(measured: dict[int, Blockwise]) -> None:
    holding = scaled_mlp.decide([point(1, 0.05, 0.033), point(64, 0.24, 0.068)], measured)
    assert [claim.holds for claim in holding] == [True, True, True]
    assert holding[0].values == pytest.approx([4.8])
    assert not scaled_mlp.decide([point(1, 0.05, 0.03), point(64, 0.1, 0.03)], measured)[0].holds
    assert not scaled_mlp.decide([point(1, 0.05, 0.03), point(64, 0.2, 0.12)], measured)[1].holds
    swapped = {1: measured[64], 64: measured[1]}
    assert not scaled_mlp.decide([point(1, 0.05, 0.033), point(64, 0.24, 0.068)], swapped)[2].holds


def test_all_patterns_share_the_trainings_without_scaling(tmp_path: Path) -> None:
    names = {scaled.scaled(setting(tmp_path), pattern, 1).name for pattern in scaled.PATTERNS}
    assert names == {"mlp-scaled-1-1-1-1"}


def test_a_tiny_run_writes_its_files_and_holds_the_exact_claim(tmp_path: Path) -> None:
    result = run("scaled-mlp", size="tiny", seeds=1, out=tmp_path / "out")
    assert result.claims[2].holds
    assert len(result.table.rows) == len(scaled.PATTERNS) * 2
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"manifest.json", "table.csv", "claim.json", "figure.png", "figure.pdf"} <= names


def test_the_papers_run_is_planned_for_an_mlp_of_width_128(tmp_path: Path) -> None:
    asked = replace(setting(tmp_path, size="paper"), seeds=3)
    assert scaled.scaled(asked, FIRST, 4).parameters == 784 * 128 + 2 * 128 * 128 + 1280 + 3 * 128 + 10
    training, spectra = scaled_mlp.plan(asked)
    assert training.flop > spectra.flop * 0.01 > 0
    assert training.what.startswith("12 times trainings of mlp-scaled-1-1-1-1")
