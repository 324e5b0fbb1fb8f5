"""A small classifier, data for it, and the products that are right: a dense Hessian in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he

torch.manual_seed(7)
X, Y = torch.randn(16, 4), torch.randint(0, 3, (16,))
EQUAL = [(X[:8], Y[:8]), (X[8:], Y[8:])]
RAGGED = [(X[:6], Y[:6]), (X[6:12], Y[6:12]), (X[12:], Y[12:])]


def classifier(*, zero_head: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    if zero_head:  # every sample's loss is log 3
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
    return model


def mean_over_all(model: nn.Module) -> Tensor:
    """The mean loss of all samples, for a model in float64."""
    return F.cross_entropy(model(X.double()), Y)


def deviation(
    model: nn.Module,
    loss: Callable[..., Any],
    data: Any,
    right: Callable[[nn.Module], Tensor] = mean_over_all,
    **options: Any,
) -> float:
    """Relative error of a product with two vectors, against the dense Hessian of ``right`` in float64."""
    twin = copy.deepcopy(model).double()
    parameters = list(twin.parameters())
    gradients = torch.autograd.grad(right(twin), parameters, create_graph=True, materialize_grads=True)
    gradient = torch.cat([g.reshape(-1) for g in gradients])
    hessian = torch.stack(
        [
            torch.cat(
                [
                    torch.zeros_like(p).reshape(-1) if row is None else row.reshape(-1)
                    for row, p in zip(
                        torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True)
                        if entry.grad_fn is not None
                        else [None] * len(parameters),
                        parameters,
                        strict=True,
                    )
                ]
            )
            for entry in gradient
        ]
    )
    vectors = torch.randn(2, len(hessian), generator=torch.Generator().manual_seed(1))
    found = he.HessianOperator(model, loss, data=data, **options).matmat({"full": vectors})["full"]
    wanted = vectors.double() @ hessian
    return float((found.double() - wanted).norm() / wanted.norm())
