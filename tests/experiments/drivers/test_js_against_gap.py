"""D8: what a run of seconds writes, and that each of its claims can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hvp_engine.experiments.drivers import js_against_gap
from hvp_engine.experiments.drivers.js_against_gap import PRETRAINED, RANDOM
from hvp_engine.experiments.result import Result

JS0 = {RANDOM: [0.70] * 3, PRETRAINED: [0.39] * 3}
GAPS = {
    "vgg": [0.0001, -0.0002, 0.0001], "resnet": [0.0001] * 3, "mlp": [0.002] * 3, "vit": [0.97, 0.9, 1.0],
    RANDOM: [0.236] * 3, PRETRAINED: [0.084] * 3,
}  # fmt: skip


def test_a_tiny_run_places_every_model_and_both_starts(run_tiny: Callable[[str], Result]) -> None:
    result = run_tiny("js-against-gap")
    names = [row[0] for row in result.table.rows]
    assert names == [
        "mlp", "mixer", "resnet", "vgg", "vit", "bert", "gpt", "gpt-stdlib-random", "gpt-stdlib-pretrained"
    ]  # fmt: skip
    assert "Kendall's tau" in result.notes[0] and len(result.claims) == 4
    assert all(len(axes.texts) >= len(names) for axes in result.figure.axes)


@pytest.mark.parametrize(
    ("js0", "gaps", "holds"),
    [
        ({}, {}, [True, True, True, True]),
        ({}, {"resnet": [0.2] * 3}, [False, True, True, True]),
        ({}, {"vit": [0.05] * 3}, [True, False, True, True]),
        ({}, {PRETRAINED: [0.2] * 3}, [True, True, False, True]),
        ({}, {RANDOM: [-0.1] * 3, PRETRAINED: [-0.2] * 3}, [True, True, False, True]),
        ({RANDOM: [0.3] * 3}, {}, [True, True, True, False]),
    ],
)
def test_the_claims_hold_within_a_task_and_each_can_fail(
    js0: dict[str, list[float]], gaps: dict[str, list[float]], holds: list[bool]
) -> None:
    claims = js_against_gap.gates({**JS0, **js0}, {**GAPS, **gaps})
    assert [claim.holds for claim in claims] == holds
