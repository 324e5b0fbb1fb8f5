"""Products with a loss whose gradient is not one are refused where slq refuses them; harmless cuts are let through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import SecondDerivativeError
from hvp_engine.operators.hessian import HessianOperator

Layer = Callable[[Tensor], Tensor]


def by_detached(x: Tensor) -> Tensor:
    return x * x.detach()


def by_data(x: Tensor) -> Tensor:
    return x * x.data.sigmoid()


def by_item(x: Tensor) -> Tensor:
    return x * x.square().sum().item()


def straight_through(x: Tensor) -> Tensor:
    return x + ((4 * x).round() / 4 - x).detach()


def by_statistics_without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.std(-1, keepdim=True) + 0.1
    return x / scale


def by_own_softmax(x: Tensor) -> Tensor:
    exponentials = (x - x.max(-1, keepdim=True).values.detach()).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def with_a_metric(x: Tensor) -> Tensor:
    with torch.no_grad():
        x.square().mean().item()
    return x.sin()


class Conditional(nn.Module):
    """Passes batches that are marked in their first entry through another layer than the others."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.above, self.layer = nn.Linear(4, 5), nn.Linear(5, 3), layer

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.below(x))
        logits: Tensor = self.above(self.layer(hidden) if x[0, 0] == 9 else hidden.sin())
        return logits


def batches(marked: int) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    found = [(torch.randn(4, 4, generator=generator), torch.arange(4) % 3) for _ in range(3)]
    found[marked][0][0, 0] = 9
    return found


def products(layer: Layer, marked: int, precision: str = "fp64") -> Tensor:
    model = Conditional(layer)
    vectors = torch.ones(1, sum(p.numel() for p in model.parameters()))
    return he.hvp(model, he.losses.classification, {"full": vectors}, data=batches(marked), precision=precision)["full"]  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("marked", [0, 2])
@pytest.mark.parametrize(
    "layer", [by_detached, by_data, by_item, straight_through, by_statistics_without_gradient], ids=lambda f: f.__name__
)
def test_a_value_cut_out_of_the_graph_on_any_batch_is_refused_and_its_line_named(
    layer: Layer, marked: int, precision: str
) -> None:
    with pytest.raises(SecondDerivativeError, match=r"here: \S*test_cut_graphs.py:\d+"):
        products(layer, marked, precision)


def test_slq_refuses_a_cut_that_its_first_batch_does_not_reach() -> None:
    with pytest.raises(SecondDerivativeError, match="here: "):
        he.slq(Conditional(by_detached), he.losses.classification, data=batches(2), steps=3, probes=1, progress=False)


def test_without_the_check_slq_takes_a_cut_for_what_is_meant() -> None:
    data = batches(2)
    run = he.slq(
        Conditional(by_detached), he.losses.classification, data=data, steps=3, probes=1, progress=False, check=False
    )
    assert run["full"].nodes.size


@pytest.mark.parametrize("layer", [by_own_softmax, with_a_metric], ids=lambda f: f.__name__)
def test_a_cut_that_leaves_the_gradient_right_changes_nothing(layer: Layer) -> None:
    def uncut(x: Tensor) -> Tensor:
        return x.softmax(-1) if layer is by_own_softmax else x.sin()

    torch.testing.assert_close(products(layer, 1), products(uncut, 1))


def test_a_place_is_tested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = []
    whole = he.operators.operator.verify  # type: ignore[attr-defined]
    monkeypatch.setattr("hvp_engine.operators.operator.verify", lambda *a: tests.append(a) or whole(*a))
    data = [(torch.randn(4, 4), torch.arange(4) % 3) for _ in range(3)]
    for x, _ in data:
        x[0, 0] = 9
    operator = HessianOperator(Conditional(by_own_softmax), he.losses.classification, data=data)
    for _ in range(2):
        operator.matmat({"full": torch.ones(1, operator.numel["full"])})
    assert len(tests) == 1


def test_a_target_meant_to_be_constant_is_given_with_the_data() -> None:
    model, data = Conditional(torch.sin), batches(0)

    def by_itself(model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch[0]), model(batch[0].flip(0)).detach())

    vectors = {"full": torch.ones(1, sum(p.numel() for p in model.parameters()))}
    with pytest.raises(SecondDerivativeError, match="give what is meant to be constant with the data"):
        he.hvp(model, by_itself, vectors, data=data)
    given = [(x, model(x.flip(0)).detach()) for x, _ in data]
    assert he.hvp(model, lambda model, batch: F.mse_loss(model(batch[0]), batch[1]), vectors, data=given)["full"].any()
