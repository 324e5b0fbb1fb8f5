"""Backward passes with the engine's settings, and their errors put into words."""

from __future__ import annotations

import re
import warnings

import torch
from torch import Tensor, nn

from hvp_engine.errors import SecondDerivativeError
from hvp_engine.system.torch_private import check_batched_passes

_FIXES = {
    "scaled_dot_product": "use attn_implementation='eager' or the math path of scaled_dot_product_attention",
    "flash": "use attn_implementation='eager' or the math path of scaled_dot_product_attention",
    "rnn": "run the recurrent layer with torch.backends.cudnn.flags(enabled=False)",
    "grid_sampler": "replace the sampling by interpolation written with elementary operations",
}
ONCE = "a custom autograd.Function marked once_differentiable"


def fix_for(operation: str) -> str:
    """Say what to do about an operation that has no second derivative."""
    return next((fix for key, fix in _FIXES.items() if key in operation), "replace it by a differentiable one")


def backward(
    outputs: list[Tensor],
    inputs: list[Tensor] | list[nn.Parameter],
    cotangents: list[Tensor] | None,
    *,
    create_graph: bool = False,
    batched: bool = False,
) -> tuple[Tensor | None, ...]:
    """torch.autograd.grad with the engine's settings and its errors put into words."""
    if batched:
        check_batched_passes()
    try:
        with warnings.catch_warnings():
            # vmap announces operations that it has to loop over; slower, not wrong.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return torch.autograd.grad(
                outputs,
                inputs,
                cotangents,
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
                is_grads_batched=batched,
            )
    except RuntimeError as error:  # NotImplementedError is one, too
        text = str(error)
        match = re.search(r"derivative for '?(?:aten::)?([\w:]+)'? is not implemented", text)
        if match:
            operation = match.group(1)
        elif "does not require grad" in text or "once_differentiable" in text:
            operation = ONCE
        elif "use_reentrant" in text or "checkpointing is not compatible" in text.lower():
            raise SecondDerivativeError(
                "Reentrant activation checkpointing cannot be differentiated twice; use "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            ) from error
        elif "compiled" in text or "aot_autograd" in text:
            raise SecondDerivativeError(
                "torch.compile'd modules cannot be differentiated twice; pass the uncompiled model (model._orig_mod)."
            ) from error
        else:
            raise
        raise without_second_derivative(operation) from error


def without_second_derivative(operation: str) -> SecondDerivativeError:
    """Make the error about an operation that has no second derivative."""
    return SecondDerivativeError(
        f"The model cannot be differentiated twice: {operation} has no second derivative; {fix_for(operation)}."
    )
