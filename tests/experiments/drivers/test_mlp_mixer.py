"""D6: what a run of seconds writes, and that its claims can fail."""

from __future__ import annotations

from collections.abc import Callable

from hvp_engine.experiments.drivers import mlp_mixer
from hvp_engine.experiments.result import Result

JS0 = {"mixer": [0.51, 0.62, 0.69], "vgg": [0.26, 0.31, 0.22], "resnet": [0.27, 0.30, 0.29]}
SPREAD = {"mixer": [0.99, 1.03, 1.01], "vgg": [0.34] * 3, "resnet": [0.39, 0.43, 0.40]}


def test_a_tiny_run_compares_the_mixer_with_both_cnns_and_trains_it(run_tiny: Callable[[str], Result]) -> None:
    result = run_tiny("mlp-mixer")
    assert [row[0] for row in result.table.rows] == ["mixer", "resnet", "vgg"]
    assert [row[-1] == "" for row in result.table.rows] == [False, True, True]
    assert len(result.claims) == 2 and "The gap is reported, not decided by." in result.notes


def test_each_claim_can_fail() -> None:
    assert [claim.holds for claim in mlp_mixer.gates(JS0, SPREAD)] == [True, True]
    assert [claim.holds for claim in mlp_mixer.gates({**JS0, "vgg": [0.4] * 3}, SPREAD)] == [False, True]
    assert [claim.holds for claim in mlp_mixer.gates(JS0, {**SPREAD, "vgg": [0.6] * 3})] == [True, False]
