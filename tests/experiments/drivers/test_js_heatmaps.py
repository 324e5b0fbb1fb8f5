"""D4: a run of seconds shows the spread, the heat maps are drawn, and its claims can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hvp_engine.experiments.drivers import js_heatmaps
from hvp_engine.experiments.result import Result

MEASURED = {
    "resnet": (0.27, 0.30, 0.29),
    "vgg": (0.26, 0.31, 0.22),
    "vit": (0.57, 0.59, 0.58),
    "bert": (0.65, 0.67, 0.68),
}
MEASURED_SPREAD = {"resnet": (0.39,) * 3, "vgg": (0.34,) * 3, "vit": (1.49,) * 3, "bert": (1.64,) * 3}


def test_at_tiny_size_the_spread_tells_transformers_from_cnns(run_tiny: Callable[[str], Result]) -> None:
    result = run_tiny("js-heatmaps")
    assert [row[0] for row in result.table.rows] == ["resnet", "vgg", "vit", "bert", "gpt", "mlp", "mixer"]
    assert len(result.claims) == 1 and result.holds
    panels = [axes for axes in result.figure.axes if axes.get_images()]
    assert len(panels) == 7 and {axes.get_images()[0].get_clim() for axes in panels} == {(0.0, 1.0)}


def test_what_was_measured_fulfils_both_claims() -> None:
    claims = js_heatmaps.gates(MEASURED, MEASURED_SPREAD, ("vit", "bert"))
    assert [claim.holds for claim in claims] == [True, True]
    assert claims[0].values == pytest.approx((0.57 / 0.27, 0.59 / 0.31, 0.58 / 0.29))


def test_a_transformer_whose_blocks_are_alike_in_one_seed_fails_each_claim() -> None:
    alike = {**MEASURED, "vit": (0.57, 0.40, 0.58)}
    assert [claim.holds for claim in js_heatmaps.gates(alike, MEASURED_SPREAD, ("vit", "bert"))] == [False, True]
    alike = {**MEASURED_SPREAD, "vit": (1.49, 0.7, 1.49)}
    assert [claim.holds for claim in js_heatmaps.gates(MEASURED, alike, ("vit", "bert"))] == [True, False]
    assert not js_heatmaps.gates(MEASURED, {**alike, "vit": (0.5,) * 3}, ("vit", "bert"), tiny=True)[0].holds


def test_names_of_blocks_lose_what_all_have_and_long_ones_their_beginning() -> None:
    names = ["blocks.3.shortcut.0", "layers.0.attention.query", "head", "layers.1.channels.fc1"]
    assert js_heatmaps.short(names, most=12) == ["3.shortcut.0", "0.query", "head", "…hannels.fc1"]
