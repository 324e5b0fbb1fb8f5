"""Fisher matrices as their definitions have them: plain loops over samples and tokens, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from problems import Case, to_double, total_and_weight
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Gradients = Iterable[tuple[float, Tensor]]
"""Weights c and gradients g of some losses, of which the matrix is the sum of c g g'."""


def double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


def flat_gradient(value: Tensor, model: nn.Module) -> Tensor:
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(found, parameters, strict=True)]
    )


def summed(gradients: Gradients, weight: float) -> Tensor:
    total: Tensor | float = 0.0
    for c, g in gradients:
        total = total + c * torch.outer(g, g)
    assert isinstance(total, Tensor)
    return total / weight


def weight_of(case: Case) -> float:
    model = double(case.model)
    return sum(total_and_weight(case.loss, model, to_double(batch))[1] for batch in case.data)


def by_samples(case: Case) -> Tensor:
    """Empirical Fisher matrix by samples."""
    model = double(case.model)

    def gradients() -> Gradients:
        for batch in case.data:
            for i in range(len(batch[0])):
                sample = tuple(tensor[i : i + 1] for tensor in to_double(batch))
                yield 1.0, flat_gradient(total_and_weight(case.loss, model, sample)[0], model)

    return summed(gradients(), weight_of(case))


def by_rows(case: Case, rows: Callable[[nn.Module, int, Any], Gradients]) -> Tensor:
    """The matrix of rows that a function lists: of a model, of a batch's number and of the batch."""
    model = double(case.model)
    found = (row for number, batch in enumerate(case.data) for row in rows(model, number, to_double(batch)))
    return summed(found, weight_of(case))
