"""Functions with a backward pass of their own: one right, two that cannot be differentiated a second time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Sound(torch.autograd.Function):
    """A sine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class Once(Sound):
    """A sine that says of itself that it has no second derivative."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class Frozen(torch.autograd.Function):
    """A cube whose derivative is computed in forward and kept as a constant, as fused kernels do by mistake."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.derivative = 3 * x * x
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.derivative
