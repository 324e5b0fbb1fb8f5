"""Products tried on every batch, as a job forms them, and whatever a model raises on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patients import DATA, Model, X, codes, examine, loss, only, points_at
from torch import Tensor, nn

import hvp_engine as he


class Peculiar(Exception):
    """An exception that nobody knows."""


def penalised(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]) + (logits - model(0 * batch[0])).norm(dim=1).mean()


def test_a_batch_whose_product_is_not_finite_is_found_wherever_it_is() -> None:
    targets = DATA[0][1]
    report = examine(Model(), penalised, [(X, targets), (X + 1, targets), (0 * X, targets)], None)
    found = only(report, "curvature-not-finite")
    assert found.message.startswith("Batch 2: ") and "is not finite" in found.message
    with pytest.raises(he.HvpEngineError, match="not finite"):
        he.hvp(Model(), penalised, {"full": torch.ones(1, 75)}, data=[(X, targets), (0 * X, targets)])
    assert examine(Model(), penalised, [(X, targets), (X + 1, targets)], None).ok


class Choosy(nn.Module):
    """Fails where the first number of a batch is large, in the pass that is asked for."""

    def __init__(self, error: Exception, backward: bool) -> None:
        super().__init__()
        self.inner, self.error, self.backward = Model(), error, backward

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        if x[0, 0] > 50 and not self.backward:
            raise self.error  # the line that findings point to
        if x[0, 0] > 50:
            logits = _Failing.apply(logits, self.error)
        return logits


class _Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, error: Exception) -> Tensor:
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise ctx.error
        return grad, None


@pytest.mark.parametrize("error", [Peculiar("no"), AssertionError(), KeyError("k"), RecursionError("deep")])
@pytest.mark.parametrize(("backward", "code"), [(False, "loss-fails"), (True, "backward-fails")])
def test_what_only_a_later_batch_raises_is_a_finding(error: Exception, backward: bool, code: str) -> None:
    targets = DATA[0][1]
    found = only(examine(Choosy(error, backward), loss, [(X, targets), (X + 100, targets)]), code)
    assert found.message.startswith("Batch 1: ") and type(error).__name__ in found.message
    if not backward:
        assert points_at(found, "the line that findings point to")
    assert only(examine(Choosy(error, backward), loss, [(X + 100, targets)]), code)


def test_data_that_raises_is_a_finding() -> None:
    class Broken:
        def __iter__(self) -> Iterator[Any]:
            yield DATA[0]
            raise Peculiar("the disk is gone")

    found = only(he.doctor(Model(), loss, data=Broken(), seconds=1.0), "data-unusable")
    assert "Peculiar: the disk is gone" in found.message


def test_a_model_that_cannot_be_copied_is_a_finding() -> None:
    class Uncopied(Model):
        def __deepcopy__(self, memo: object) -> None:
            raise Peculiar("there is one of me")

    report = he.doctor(Uncopied(), loss, data=DATA, precision="fp64", seconds=1.0)
    assert "there is one of me" in only(report, "cannot-be-run").message


def test_running_out_of_memory_is_a_finding() -> None:
    def greedy(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert "ran out of memory" in only(examine(Model(greedy)), "out-of-memory").message


def test_vectors_that_go_one_by_one_are_noted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(1, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    report = he.doctor(model, loss, data=[(torch.randn(1, 2, 2, 2), torch.tensor([1]))], seconds=2.0)
    note = only(report, "single-passes")
    assert report.ok and note.severity == "note" and "go one by one" in note.message
    assert "single-passes" not in codes(examine(Model()))


def test_batches_that_are_not_reached_are_noted() -> None:
    report = he.doctor(Model(), loss, data=DATA * 3, seconds=1e-9)
    assert only(report, "batches-not-reached").severity == "note"
