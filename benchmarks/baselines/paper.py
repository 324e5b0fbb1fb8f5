"""(a) The published way: a full second backward for every block, float64 vectors on the host, one probe at a time.

The gradient graph is built once per micro-batch and sweep and shared by the blocks; what is expensive is that each
block's product asks autograd for *every* parameter and throws all but one away, and that the vectors travel through
float64 on the host. Lanczos runs without reorthogonalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Loss = Callable[[nn.Module, Any], Tensor]


class PaperHessian:
    """H_bb v for each block, as the released code of arXiv 2402.16788 computes it."""

    def __init__(self, model: nn.Module, loss: Loss, data: Sequence[Any], blocks: dict[str, str]) -> None:
        """Take the model and one parameter name per block."""
        self.model, self.loss, self.data = model, loss, data
        self.parameters = dict(model.named_parameters())
        self.blocks = blocks

    def sweep(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Form products with one float64 host vector (numel,) per block, averaged over the batches."""
        out = {name: torch.zeros_like(vector) for name, vector in vectors.items()}
        leaves = list(self.parameters.values())
        for batch in self.data:
            with sdpa_kernel(SDPBackend.MATH):
                loss = self.loss(self.model, batch)
            gradients = dict(zip(self.parameters, torch.autograd.grad(loss, leaves, create_graph=True), strict=True))
            for name, vector in vectors.items():
                target = self.blocks[name]
                direction = vector.to(self.parameters[target]).view_as(self.parameters[target])
                inner = (gradients[target] * direction).sum()
                products = torch.autograd.grad(inner, leaves, retain_graph=True, allow_unused=True)
                mine = dict(zip(self.parameters, products, strict=True))[target]
                if mine is not None:
                    out[name] += mine.reshape(-1).double().cpu()
        return {name: product / len(self.data) for name, product in out.items()}


def lanczos(matrix: PaperHessian, steps: int, seed: int) -> dict[str, tuple[list[float], list[float]]]:
    """One probe: alphas and betas of every block, three-term recurrence only, tiny betas divided by a constant."""
    generator = torch.Generator().manual_seed(seed)
    numel = {name: matrix.parameters[target].numel() for name, target in matrix.blocks.items()}
    current = {n: torch.randn(k, generator=generator, dtype=torch.float64) for n, k in numel.items()}
    current = {name: vector / vector.norm() for name, vector in current.items()}
    before = {name: torch.zeros_like(vector) for name, vector in current.items()}
    result: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in numel}
    for _ in range(steps):
        products = matrix.sweep(current)
        for name, product in products.items():
            alphas, betas = result[name]
            alphas.append(float(product @ current[name]))
            residual = product - alphas[-1] * current[name] - (betas[-1] if betas else 0.0) * before[name]
            betas.append(float(residual.norm()))
            before[name], current[name] = current[name], residual / max(betas[-1], 1e-8)
    return result
