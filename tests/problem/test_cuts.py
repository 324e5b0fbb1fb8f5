"""Lines of a forward pass that take values out of autograd's sight are found; metadata and constants are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.problem.cuts import Cut
from hvp_engine.problem.objective import Objective


def cuts(loss: Callable[..., Any]) -> frozenset[Cut]:
    objective = Objective(nn.Linear(3, 3), loss, [torch.ones(2, 3)], "fp32")
    with objective.arithmetic():
        objective.evaluate(torch.ones(2, 3), (0, 0, 2))
        found = objective.cuts
        objective.evaluate(torch.ones(2, 3), (0, 0, 2))
        assert not objective.cuts  # known by now
    return found


def without_gradients(y: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([y, y])


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # by float
@pytest.mark.parametrize(
    "use",
    [
        lambda y: y.detach(),
        torch.detach,
        lambda y: y.data,
        lambda y: y.sum().item(),
        lambda y: y.tolist(),
        lambda y: float(y.sum()),
        lambda y: (y + 0).detach_(),
        without_gradients,
    ],
)
def test_what_takes_a_value_out_of_the_graph_is_found_with_its_line(use: Callable[[Tensor], Any]) -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        y = model(batch)
        use(y)
        total: Tensor = y.mean()
        return total

    assert {cut.file for cut in cuts(loss)} == {__file__}


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach() * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


@pytest.mark.parametrize(
    "use",
    [
        lambda model, y, batch: batch.detach(),
        lambda model, y, batch: torch.no_grad()(torch.zeros_like)(y),
        lambda model, y, batch: torch.no_grad()(torch.argmax)(y),
        lambda model, y, batch: (y.device, y.shape, y.dtype),
        lambda model, y, batch: Doubled.apply(y),
        lambda model, y, batch: nn.functional.layer_norm(y, (3,)),
        lambda model, y, batch: he.losses.classification(model, (batch, torch.zeros(2, dtype=torch.long))),
    ],
)
def test_constants_and_metadata_and_functions_with_their_own_backward_are_no_cuts(use: Callable[..., Any]) -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        y = model(batch)
        use(model, y, batch)
        total: Tensor = y.mean()
        return total

    assert not cuts(loss)
