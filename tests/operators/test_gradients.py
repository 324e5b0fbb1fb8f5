"""Gradients of the objective by block: weights, ignored targets, tied weights and slices as in the products."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import CASES, Case, gpt, mlp, to_double, total_and_weight
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import NotFiniteError


def dense_gradients(case: Case) -> dict[str, Tensor]:
    model = copy.deepcopy(case.model).double()
    pairs = [total_and_weight(case.loss, model, to_double(batch)) for batch in case.data]
    value = sum(total for total, _ in pairs) / sum(weight for _, weight in pairs)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
@pytest.mark.parametrize("microbatch", [None, 1])
def test_gradients_are_those_of_the_weighted_objective(make: Any, microbatch: int | None) -> None:
    case = make()
    wanted = dense_gradients(case)
    found = he.gradients(case.model, case.loss, "parameter", data=case.data, precision="fp64", microbatch=microbatch)
    for name, gradient in wanted.items():
        assert found[name].norm == pytest.approx(float(gradient.norm()), rel=1e-10)
        assert found[name] == (found[name].norm, gradient.numel())
    (whole,) = he.gradients(case.model, case.loss, data=case.data).values()
    assert whole.norm == pytest.approx(float(torch.cat([g.reshape(-1) for g in wanted.values()]).norm()), rel=1e-5)
    assert all(parameter.grad is None for parameter in case.model.parameters())


def test_a_slice_of_a_parameter_has_its_own_part_of_the_gradient() -> None:
    case = gpt()
    wanted = dense_gradients(case)["layers.0.attn.wq.weight"]
    found = he.gradients(
        case.model, case.loss, he.blocks.heads(case.model, ["layers.0.attn.wq.weight"], 2), data=case.data
    )
    for block, piece in zip(found, (wanted[:4], wanted[4:]), strict=True):
        assert found[block].norm == pytest.approx(float(piece.norm()), rel=1e-5) and found[block].numel == 32


def test_a_tied_weight_has_one_gradient_of_both_uses() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embedding(tokens)))

    torch.manual_seed(0)
    case = Case(Tied(), lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(torch.arange(7), torch.arange(7).flip(0))])
    wanted = dense_gradients(case)
    found = he.gradients(case.model, case.loss, "parameter", data=case.data)
    assert list(found) == list(wanted) == ["embedding.weight"]
    assert found["embedding.weight"].norm == pytest.approx(float(wanted["embedding.weight"].norm()), rel=1e-5)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    case = mlp()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).mean() + (model[0].bias * 0.0).abs().sqrt().sum()  # 0 with a gradient of 0 * inf

    with pytest.raises(NotFiniteError, match="gradient of block '0.bias' is not finite"):
        he.gradients(case.model, loss, "parameter", data=case.data)
