"""What is recorded of a forward pass: random numbers and checkpoints, with their lines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from custom_functions import Frozen
from patients import Model, codes, examine, loss, only, points_at
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def test_random_numbers_are_located_and_the_rest_is_examined_too() -> None:
    def function(x: Tensor) -> Tensor:
        return Frozen.apply(x) + torch.rand(8)

    report = examine(Model(function))
    finding = only(report, "random-loss")
    assert points_at(finding, "torch.rand(8)") and "rand at" in finding.message
    assert only(report, "wrong-second-derivative")
    assert points_at(only(examine(Model(lambda x: F.dropout(x, 0.5))), "random-loss"), "F.dropout")


def test_randomness_outside_pytorch_is_found() -> None:
    numbers = iter(range(1000))
    report = examine(Model(), lambda m, b: loss(m, b) * (1 + next(numbers)))
    assert "No call of PyTorch" in only(report, "random-loss").message
    assert "not-examined" in codes(report)


def test_reentrant_checkpointing_is_located_and_the_rest_is_examined_too() -> None:
    def function(x: Tensor) -> Tensor:
        return checkpoint(Frozen.apply, x, use_reentrant=True)

    report = examine(Model(function))
    finding = only(report, "reentrant-checkpoint")
    assert finding.module == "inner" and points_at(finding, "use_reentrant=True")
    assert only(report, "wrong-second-derivative")
    assert examine(Model(lambda x: checkpoint(torch.tanh, x, use_reentrant=False))).ok
