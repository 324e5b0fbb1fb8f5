"""D7: what a run of seconds writes, and that each of its claims can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hvp_engine.experiments.drivers import pretrained_lm
from hvp_engine.experiments.result import Result

JS0 = ([0.70] * 3, [0.39] * 3)
SPREAD = ([1.64] * 3, [0.87] * 3)
GAPS = ([0.236] * 3, [0.084] * 3)


def test_a_tiny_run_has_both_starts_on_one_scale(run_tiny: Callable[[str], Result]) -> None:
    result = run_tiny("pretrained-lm")
    assert [row[0] for row in result.table.rows] == ["gpt-stdlib-random", "gpt-stdlib-pretrained"]
    maps = [axes.get_images()[0] for axes in result.figure.axes[:2]]
    assert [drawn.get_clim() for drawn in maps] == [(0.0, 1.0)] * 2
    random, pretrained = result.table.rows
    assert random[2] != pretrained[2]
    assert result.settings["pre-training"]["steps"] == 8  # type: ignore[index]


@pytest.mark.parametrize(
    ("js0", "spread", "gaps", "holds"),
    [
        (JS0, SPREAD, GAPS, [True, True, True]),
        ((JS0[0], [0.6] * 3), SPREAD, GAPS, [False, True, True]),
        (JS0, (SPREAD[0], [1.3] * 3), GAPS, [True, False, True]),
        (JS0, SPREAD, (GAPS[0], [0.2] * 3), [True, True, False]),
        (JS0, SPREAD, ([-0.1] * 3, [-0.2] * 3), [True, True, False]),
    ],
)
def test_the_claims_hold_by_means_and_each_can_fail(
    js0: tuple[list[float], ...], spread: tuple[list[float], ...], gaps: tuple[list[float], ...], holds: list[bool]
) -> None:
    assert [claim.holds for claim in pretrained_lm.gates(js0, spread, gaps)] == holds
