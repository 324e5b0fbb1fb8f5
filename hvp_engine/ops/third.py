"""Third derivatives: what follows a fused backward-of-backward goes through the same formula in plain PyTorch.

A fused operation has kernels for itself, its derivative and the derivative of that. A loss that differentiates inside
(a penalty on gradients, the residual of a differential equation, an inner training step) needs one more, and gets it by
differentiating the second derivative, written out in differentiable operations; from there on every order exists. What
is saved for that is saved only where a graph is asked for (create_graph=True), which an ordinary product never does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hvp_engine.ops.autograd import BatchedFunction, tensor_arguments, wanted_gradients
from hvp_engine.system.torch_private import inside_transform, without_torch_functions

__all__ = ["LastDerivative", "keep_arguments"]

Plain = Callable[..., tuple[Tensor | None, ...]]


def keep_arguments(ctx: Any, inputs: tuple[Any, ...], plain: Plain) -> None:
    """Save all arguments of a function and the plain formula that gives the same outputs, in `setup_context`."""
    ctx.plain = plain
    ctx.is_tensor = tensor_arguments(inputs)
    ctx.others = [None if tensor else value for value, tensor in zip(inputs, ctx.is_tensor, strict=True)]
    tensors = [value for value, tensor in zip(inputs, ctx.is_tensor, strict=True) if tensor]
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.set_materialize_grads(False)


def _kept_arguments(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if tensor else other for other, tensor in zip(ctx.others, ctx.is_tensor, strict=True)]


class LastDerivative(BatchedFunction):
    """A function that is differentiated by its plain formula; its `setup_context` calls `keep_arguments`."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Differentiate the plain formula in reverse."""
        return _pull_back(ctx.plain, _kept_arguments(ctx), wanted_gradients(ctx, ctx.is_tensor), grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Differentiate the plain formula in forward mode."""
        return _push_forward(ctx.plain, _kept_arguments(ctx), tangents)


def _pull_back(
    plain: Plain, arguments: Sequence[Any], needs: Sequence[bool], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Multiply cotangents of a formula's outputs by its Jacobian, differentiably if the running pass keeps a graph."""
    wanted = [index for index, need in enumerate(needs) if need]

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        found = zip(plain(*_replaced(arguments, wanted, values)), cotangents, strict=True)
        return tuple(output for output, cotangent in found if output is not None and cotangent is not None)

    given = tuple(cotangent for cotangent in cotangents if cotangent is not None)
    gradients: list[Tensor | None] = [None] * len(arguments)
    if given and wanted:
        pull = _pull_through_transforms if inside_transform() else _pull
        for index, gradient in zip(wanted, pull(outputs, [arguments[index] for index in wanted], given), strict=True):
            gradients[index] = gradient
    return tuple(gradients)


def _pull(
    outputs: Callable[..., tuple[Tensor, ...]], values: Sequence[Tensor], cotangents: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    keep_graph = torch.is_grad_enabled()
    with without_torch_functions(), torch.enable_grad():
        # Views: one tensor may be several arguments, each of which has a gradient of its own.
        own = [value.view_as(value) for value in values]
        # What a transform that has ended saved has no graph any more.
        own = [value if value.requires_grad else value.detach().requires_grad_() for value in own]
        pairs = [pair for pair in zip(outputs(*own), cotangents, strict=True) if pair[0].requires_grad]
        if not pairs:
            return (None,) * len(values)
        found, given = zip(*pairs, strict=True)
        return torch.autograd.grad(found, own, given, create_graph=keep_graph, allow_unused=True)


def _pull_through_transforms(
    outputs: Callable[..., tuple[Tensor, ...]], values: Sequence[Tensor], cotangents: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    with without_torch_functions():
        pulled: tuple[Tensor, ...] = torch.func.vjp(outputs, *values)[1](cotangents)
    return pulled


def _replaced(arguments: Sequence[Any], places: Sequence[int], values: Sequence[Tensor]) -> list[Any]:
    replaced = list(arguments)
    for place, value in zip(places, values, strict=True):
        replaced[place] = value
    return replaced


def _push_forward(plain: Plain, arguments: Sequence[Any], tangents: Sequence[Tensor | None]) -> Any:
    """Differentiate a formula along tangents of its arguments.

    The map v -> J v is the transpose of the linear map w -> J' w.
    """
    moving = [index for index, tangent in enumerate(tangents) if tangent is not None]
    present: list[bool] = []

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        found = plain(*_replaced(arguments, moving, values))
        present[:] = [output is not None for output in found]
        return tuple(output for output in found if output is not None)

    with without_torch_functions():
        results, pull = torch.func.vjp(outputs, *[arguments[index] for index in moving])[:2]
        push = torch.func.vjp(lambda *w: pull(w), *[torch.zeros_like(result) for result in results])[1]
        pushed = iter(push(tuple(tangents[index] for index in moving)))
    return tuple(next(pushed) if there else None for there in present)
