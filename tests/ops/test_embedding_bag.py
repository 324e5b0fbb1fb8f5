"""Embedding bags that can be differentiated twice, against PyTorch's own and against its lookups."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hvp_engine.ops import twice_differentiable

TOKENS = torch.tensor([1, 1, 2, 0, 4, 5, 1, 1])
SHAPES: dict[str, dict[str, Any]] = {
    "matrix": {"input": TOKENS.view(4, 2)},
    "offsets": {"input": TOKENS, "offsets": torch.tensor([0, 2, 2, 5])},
    "end": {"input": TOKENS.int(), "offsets": torch.tensor([0, 2, 2, 5, 8]).int(), "include_last_offset": True},
    "empty": {"input": TOKENS[:0], "offsets": torch.tensor([0, 0])},
}


def table() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("mode", "padding"), list(itertools.product(("sum", "mean", "max"), (None, 1, -2))))
def test_values_and_gradients_are_those_of_pytorch(mode: str, padding: int | None, shape: str) -> None:
    options = {**SHAPES[shape], "weight": table(), "mode": mode, "padding_idx": padding}
    plain = F.embedding_bag(**options)
    with twice_differentiable() as replaced:
        found = F.embedding_bag(**options)
    assert replaced.replaced["embedding_bag"] == 1
    torch.testing.assert_close(found, plain)
    gradients = [torch.autograd.grad(out.sin().sum(), options["weight"])[0] for out in (found, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", ["matrix", "offsets"])
def test_samples_may_have_weights(shape: str) -> None:
    given = SHAPES[shape]
    weights = torch.linspace(-1, 2, 8, dtype=torch.float64).view(given["input"].shape).requires_grad_()
    options = {**given, "weight": table(), "mode": "sum", "per_sample_weights": weights}
    plain = F.embedding_bag(**options)
    with twice_differentiable():
        found = F.embedding_bag(**options)
    torch.testing.assert_close(found, plain)
    gradients = [torch.autograd.grad(out.sin().sum(), (options["weight"], weights)) for out in (found, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_the_second_derivative_is_that_of_lookups(mode: str, sparse: bool) -> None:
    tokens = TOKENS.view(4, 2)

    def bags(weight: Tensor) -> Tensor:
        with twice_differentiable():
            return F.embedding_bag(tokens, weight, mode=mode, sparse=sparse and mode != "max").sin().sum()

    def lookups(weight: Tensor) -> Tensor:
        rows = weight[tokens]
        reduced = {"sum": rows.sum(1), "mean": rows.mean(1), "max": rows.max(1).values}[mode]
        return reduced.sin().sum()

    hessians = [torch.autograd.functional.hessian(function, table().detach()) for function in (bags, lookups)]
    torch.testing.assert_close(*hessians)


def test_what_it_cannot_serve_stays_with_pytorch() -> None:
    options = {"input": TOKENS.view(4, 2), "weight": table().detach()}
    for further in ({"max_norm": 1.0}, {"scale_grad_by_freq": True}):
        with twice_differentiable() as replaced:
            F.embedding_bag(**options, **further)
        assert not replaced.replaced
    with twice_differentiable(), pytest.raises(ValueError, match="offsets"):
        F.embedding_bag(TOKENS, table())
