"""Fisher matrices as their definitions have them: plain loops over samples and tokens, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from problems import Case, to_double, total_and_weight
from test_hvp import offsets
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hvp_engine.operators.operator import CurvatureOperator

TOLERANCE = {"fp32": 2e-5, "fp64": 1e-11}
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


def compare(operator: CurvatureOperator, dense: Tensor, model: nn.Module, precision: str = "fp64") -> None:
    """Products with every block, one vector and several, against the dense matrix."""
    where = offsets(model)
    scale = float(torch.linalg.matrix_norm(dense, 2))
    for streams in (1, 6):
        operator.scheduler.plan.streams_per_pass = streams
        vectors = {name: torch.randn(6, n, dtype=torch.float64) for name, n in operator.numel.items()}
        for name, found in operator.matmat(vectors).items():
            part = where.get(name, slice(None))
            error = (found.double() - vectors[name] @ dense[part, part]).norm()
            assert float(error) <= TOLERANCE[precision] * scale * float(vectors[name].norm()), (name, streams)


def blocks_of(model: nn.Module) -> dict[str, list[str]]:
    return {"all of it": ["*"], **{name: [name] for name in offsets(model)}}
