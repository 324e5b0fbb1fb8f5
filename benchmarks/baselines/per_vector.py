"""(b) One forward and one double backward for every vector: nothing is shared (hessian-eigenthings style)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class PerVectorHessian:
    """H_bb v with a forward, a gradient graph and a second backward of its own for each block."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        data: Sequence[Any],
        blocks: dict[str, str],
    ) -> None:
        """Take the model and one parameter name per block."""
        self.model, self.loss, self.data, self.blocks = model, loss, data, blocks
        self.parameters = dict(model.named_parameters())

    def sweep(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Form products with one vector (numel,) per block, averaged over the batches."""
        out = {name: torch.zeros_like(vector) for name, vector in vectors.items()}
        for name, vector in vectors.items():
            parameter = self.parameters[self.blocks[name]]
            for batch in self.data:
                with sdpa_kernel(SDPBackend.MATH):
                    loss = self.loss(self.model, batch)
                (gradient,) = torch.autograd.grad(loss, parameter, create_graph=True)
                inner = (gradient * vector.view_as(parameter)).sum()
                (product,) = torch.autograd.grad(inner, parameter)
                out[name] += product.reshape(-1)
        return {name: product / len(self.data) for name, product in out.items()}
