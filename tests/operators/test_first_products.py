"""How often a single product runs the loss: each evaluation beside the graph's is a share of what the product costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import NonDeterministicError
from hvp_engine.problem.state_walk import StateWalk


class Counted:
    """A loss that counts its evaluations, and the samples of each."""

    def __init__(self, factor: Callable[[int], float] = lambda _: 1.0) -> None:
        self.samples: list[int] = []
        self._factor = factor

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return a mean loss, times a factor that may depend on the number of the evaluation."""
        self.samples.append(len(batch[1]))
        return F.cross_entropy(model(batch[0]), batch[1]) * self._factor(len(self.samples))


def problem(samples: int) -> tuple[nn.Module, list[Any], dict[str, Tensor]]:
    """Return a classifier with a head, data and a vector."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 8))
    data = [(torch.randn(samples, 4), torch.randint(0, 8, (samples,)))]
    return model, data, {"full": torch.ones(1, sum(p.numel() for p in model.parameters()))}


def test_a_product_of_few_samples_evaluates_the_loss_once_beside_its_graph() -> None:
    model, data, vectors = problem(2)
    loss = Counted()
    he.hvp(model, loss, vectors, data=data)
    assert loss.samples == [2, 2]


def test_a_product_of_many_samples_evaluates_two_of_them_twice_beside_its_graph() -> None:
    model, data, vectors = problem(10)
    loss = Counted()
    he.hvp(model, loss, vectors, data=data)
    assert loss.samples == [2, 2, 10]


def test_a_kept_operator_evaluates_nothing_again_and_walks_through_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, vectors = problem(10)
    loss = Counted()
    operator = he.HessianOperator(model, loss, data=data)
    first = operator.matmat(vectors)
    known, walks = len(loss.samples), []
    original = StateWalk.__init__

    def walked(walk: StateWalk, model: nn.Module) -> None:
        walks.append(model)
        original(walk, model)

    monkeypatch.setattr(StateWalk, "__init__", walked)
    assert torch.equal(operator.matmat(vectors)["full"], first["full"])
    assert len(loss.samples) == known
    assert not walks


@pytest.mark.parametrize("samples", [2, 10])
def test_a_loss_that_changes_from_call_to_call_is_refused_by_a_single_product(samples: int) -> None:
    model, data, vectors = problem(samples)
    with pytest.raises(NonDeterministicError, match="Two evaluations of the same batch"):
        he.hvp(model, Counted(lambda count: 1 + 1e-4 * count), vectors, data=data)


def test_a_model_that_is_trained_before_its_first_product_has_no_random_loss() -> None:
    model, data, vectors = problem(2)
    operator = he.HessianOperator(model, Counted(), data=data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    found = operator.matmat(vectors)["full"]
    assert torch.equal(found, he.HessianOperator(model, Counted(), data=data).matmat(vectors)["full"])


def test_products_are_the_same_before_and_after_the_plan_is_made() -> None:
    model, data, vectors = problem(10)
    operator = he.HessianOperator(model, Counted(), data=data)
    alone = operator.matmat(vectors)["full"]
    together = operator.matmat({"full": torch.cat([vectors["full"], -vectors["full"]])})["full"]
    torch.testing.assert_close(together, torch.cat([alone, -alone]))
    assert operator.scheduler.plan.graph_bytes > 0
    assert torch.equal(operator.matmat(vectors)["full"], alone)
