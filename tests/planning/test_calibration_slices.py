"""A plan for this machine measures as much of the model as takes seconds, and no more."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hvp_engine as he
from hvp_engine.planning import calibration
from hvp_engine.planning.calibration import TOO_LONG, _slice


@pytest.mark.parametrize(
    ("microbatch", "seconds", "wanted"),
    [
        (8, 1.0, (8, 1.0)),
        (8, 40.0, (4, 0.5)),
        (8, 159.0, (1, 0.125)),
        (8, 161.0, (8, None)),
        (None, 19.0, (None, 1.0)),
        (None, 21.0, (None, None)),
    ],
)
def test_as_many_samples_are_measured_as_seconds_suffice_for(
    microbatch: int | None, seconds: float, wanted: tuple[int | None, float | None]
) -> None:
    assert _slice(microbatch, seconds) == wanted


SEEN: list[int] = []  # samples of each evaluation; beside the model, whose state the engine puts back


class Counting(nn.Module):
    """Notes how many samples it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if type(batch) is torch.Tensor:
            SEEN.append(len(batch))
        return self.layers(batch)


def planned(model: nn.Module) -> he.JobPlan:
    data = [(torch.randn(24, 6), torch.randint(0, 3, (24,)))]
    return he.plan(model, he.losses.classification, "parameter", data=data, steps=5, probes=1)


def test_a_large_micro_batch_is_measured_on_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counting()
    SEEN.clear()
    whole = planned(model)
    assert whole.calibrated and max(SEEN) == 24
    SEEN.clear()
    monkeypatch.setattr(calibration, "_slice", lambda microbatch, seconds: (3, 3 / 24))
    part = planned(model)
    assert part.calibrated and max(SEEN) == 3
    assert part.flop == whole.flop and part.seconds > 0


def test_where_one_sample_takes_too_long_nothing_is_run_and_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Counting()
    SEEN.clear()
    monkeypatch.setattr(calibration, "_LIMIT", 1e-12)
    plan = planned(model)
    assert not plan.calibrated and not SEEN
    assert TOO_LONG in plan.notes and TOO_LONG in " ".join(plan.summary().split())
