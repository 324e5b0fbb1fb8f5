"""What is seen of a sample's graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hvp_engine as he
from hvp_engine.scheduling import policy


@pytest.mark.parametrize(
    ("layer", "dtype", "transient"),
    [
        (nn.Conv1d(2, 2, 3), torch.float32, policy.CONVOLVED[torch.float32]),
        (nn.Conv1d(2, 2, 3), torch.float64, policy.CONVOLVED[torch.float64]),
        (nn.Linear(8, 8), torch.float32, policy.TRANSIENT),
    ],
)
def test_convolutions_are_seen_and_leave_room_for_what_their_passes_hold(
    layer: nn.Module, dtype: torch.dtype, transient: float
) -> None:
    data = [torch.ones(4, 2, 8)]
    precision = "fp64" if dtype == torch.float64 else "fp32"
    operator = he.HessianOperator(layer, lambda m, x: m(x).tanh().sum(), data=data, precision=precision)
    scheduler = operator.scheduler
    assert scheduler.transient_in(dtype) == transient
    assert scheduler.working_bytes == int(transient * scheduler.plan.graph_bytes)
