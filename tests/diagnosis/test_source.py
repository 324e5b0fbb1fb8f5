"""The user's line in a stack."""

from __future__ import annotations

from typing import Any

from patients import Model, examine, only, points_at
from torch import Tensor, nn


def test_a_loss_that_raises_is_located() -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).sum() + batch[7]

    finding = only(examine(Model(), broken), "loss-fails")
    assert "IndexError" in finding.message and points_at(finding, "batch[7]")
