"""D1: a run of seconds draws every model and stage, and each of its claims can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hvp_engine.experiments.drivers import full_spectra
from hvp_engine.experiments.result import Result

FURTHEST = [0.02, 0.03, 0.03]
LARGEST = {"vgg": [4.2] * 3, "resnet": [3.9] * 3, "vit": [5.8] * 3, "gpt": [5.5] * 3}
SPREAD = {"vit": [1.49] * 3, "gpt": [1.71] * 3}


def test_a_tiny_run_has_a_row_and_a_panel_per_model_and_stage(run_tiny: Callable[[str], Result]) -> None:
    result = run_tiny("full-spectra")
    assert [row[:2] for row in result.table.rows[:2]] == [("resnet", "init"), ("resnet", "1.0")]
    assert len(result.table.rows) == 10 and sum(bool(axes.lines) for axes in result.figure.axes) == 10
    assert len(result.claims) == 4


def test_what_was_measured_fulfils_every_claim() -> None:
    assert all(claim.holds for claim in full_spectra.gates(FURTHEST, LARGEST, SPREAD))


@pytest.mark.parametrize(
    ("furthest", "largest", "spread", "failing"),
    [
        ([0.02, 0.2, 0.03], LARGEST, SPREAD, 0),
        (FURTHEST, {**LARGEST, "vgg": [1.4, 4.2, 4.2]}, SPREAD, 1),
        (FURTHEST, {**LARGEST, "vgg": [16.0, 4.2, 4.2]}, SPREAD, 2),
        (FURTHEST, LARGEST, {**SPREAD, "vit": [0.2] * 3}, 3),
    ],
)
def test_each_claim_can_fail(
    furthest: list[float], largest: dict[str, list[float]], spread: dict[str, list[float]], failing: int
) -> None:
    holds = [claim.holds for claim in full_spectra.gates(furthest, largest, spread)]
    assert holds == [place != failing for place in range(4)]
