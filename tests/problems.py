"""Small models with dense float64 Hessians, and matrices with known spectra, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig


@dataclass
class Case:
    """A model, a loss and data, in float32."""

    model: nn.Module
    loss: Callable[..., Any]
    data: list[Any]


def mlp() -> Case:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.GELU(), nn.Linear(6, 3))
    # Ragged batches: a mean over each must be weighted by its size.
    data = [(torch.randn(n, 5), torch.randint(0, 3, (n,))) for n in (5, 2, 4)]
    return Case(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), data)


def cnn() -> Case:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(64, 3)
    )
    for _ in range(3):
        model(torch.randn(8, 2, 4, 4))
    model.eval()
    data = [(torch.randn(n, 2, 4, 4), torch.randint(0, 3, (n,))) for n in (4, 3)]
    return Case(model, he.losses.classification, data)


def gpt() -> Case:
    torch.manual_seed(3)
    model = GPT(GPTConfig(vocabulary=13, context=6, layers=2, heads=2, width=8)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(8.0)  # away from the nearly linear regime of the initialisation
    data = []
    for n in (3, 2):
        inputs = torch.randint(0, 13, (n, 6))
        targets = torch.randint(0, 13, (n, 6))
        targets[0, : 1 + n] = he.losses.IGNORE
        data.append((inputs, targets))
    return Case(model, he.losses.causal_lm, data)


CASES = {"mlp": mlp, "cnn": cnn, "gpt": gpt}


def total_and_weight(loss: Callable[..., Any], model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    value = loss(model, batch)
    if isinstance(value, tuple):
        return value[0], float(value[1])
    return value * len(batch[0]), float(len(batch[0]))


def to_double(batch: Any) -> Any:
    return tuple(t.double() if t.is_floating_point() else t for t in batch)


def dense_hessian(case: Case, names: Iterable[str] | None = None, *, batched: bool = True) -> Tensor:
    """Hessian over whole parameters in float64, (numel, numel), many rows at once or, not ``batched``, one by one."""
    import copy

    model = copy.deepcopy(case.model).double()
    chosen = dict(model.named_parameters())
    parameters = list(chosen.values()) if names is None else [chosen[name] for name in names]
    with sdpa_kernel(SDPBackend.MATH):
        pairs = [total_and_weight(case.loss, model, to_double(batch)) for batch in case.data]
    value = sum(total for total, _ in pairs) / sum(weight for _, weight in pairs)
    gradients = torch.autograd.grad(value, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradients])
    rows = []
    for unit in torch.eye(len(flat), dtype=flat.dtype).split(128 if batched else 1):
        pieces = torch.autograd.grad(
            flat,
            parameters,
            unit if batched else unit[0],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=batched,
        )
        rows.append(
            torch.cat(
                [
                    p.new_zeros(len(unit), p.numel()) if r is None else r.reshape(len(unit), -1)
                    for r, p in zip(pieces, parameters, strict=True)
                ],
                dim=1,
            )
        )
    return torch.cat(rows)


@dataclass
class Quadratic:
    """A model whose Hessian is a given matrix."""

    model: nn.Module
    loss: Callable[[nn.Module], Tensor]
    matrix: Tensor


def quadratic(matrix: Tensor) -> Quadratic:
    """Loss w' A w / 2 in the matrix's dtype."""

    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(len(matrix), dtype=matrix.dtype))
            self.register_buffer("a", matrix.clone())

    def loss(model: nn.Module) -> Tensor:
        return 0.5 * (model.w @ (model.a @ model.w))

    return Quadratic(Weights(), loss, matrix)


def symmetric(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """A dense symmetric float64 matrix with given eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = (q * eigenvalues.double()) @ q.T
    return (matrix + matrix.T) / 2


def same_dtype_projection(basis: Tensor, vector: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Two-pass Gram-Schmidt as one writes it in PyTorch, in the vector's own dtype."""
    rows = basis[:count].to(vector.dtype)
    total = torch.zeros(count, dtype=vector.dtype)
    for _ in range(2):
        dots = rows @ vector
        vector = vector - rows.T @ dots
        total += dots
    return vector, total
