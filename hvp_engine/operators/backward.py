"""Backward passes with the engine's settings, and their errors put into words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hvp_engine.errors import BackwardError, SecondDerivativeError
from hvp_engine.problem.model_state import renew_active
from hvp_engine.system.failures import pass_on
from hvp_engine.system.formatting import first_line, text_of
from hvp_engine.system.torch_private import check_batched_passes, resumed_torch_functions
from hvp_engine.system.warning_filters import without_loop_warnings

_FIXES = {
    "scaled_dot_product": "use attn_implementation='eager' or the math path of scaled_dot_product_attention",
    "flash": "use attn_implementation='eager' or the math path of scaled_dot_product_attention",
    "rnn": "run the recurrent layer with torch.backends.cudnn.flags(enabled=False)",
    "grid_sampler": "replace the sampling by interpolation written with elementary operations",
}
ONCE = "a custom autograd.Function marked once_differentiable"

Ends = Sequence[Tensor] | Sequence[GradientEdge]  # tensors, or where they are in the graph


def fix_for(operation: str) -> str:
    """Say what to do about an operation that has no second derivative."""
    return next((fix for key, fix in _FIXES.items() if key in operation), "replace it by a differentiable one")


def backward(
    outputs: Ends,
    inputs: Ends,
    cotangents: Sequence[Tensor] | None,
    *,
    create_graph: bool = False,
    batched: bool = False,
) -> tuple[Tensor | None, ...]:
    """torch.autograd.grad with the engine's settings; sparse gradients come out dense.

    Raises:
        SecondDerivativeError: The pass failed, in a function of PyTorch's or of the user's, whatever that raised.
            Only a lack of memory, a device that failed and this package's own errors go through as they are.
    """
    renew_active()
    try:
        if batched:
            check_batched_passes()
        with without_loop_warnings() if batched else nullcontext(), resumed_torch_functions():
            found = torch.autograd.grad(
                outputs,
                inputs,
                cotangents,
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
                is_grads_batched=batched,
            )
        return tuple(g if g is None or g.layout == torch.strided else g.to_dense() for g in found)
    except Exception as error:
        pass_on(error)
        raise _explained(error) from error


def without_second_derivative(operation: str) -> SecondDerivativeError:
    """Make the error about an operation that has no second derivative."""
    return SecondDerivativeError(
        f"The model cannot be differentiated twice: {operation} has no second derivative; {fix_for(operation)}."
    )


def _explained(error: Exception) -> SecondDerivativeError:
    """Say what to do about an exception that ended a backward pass."""
    cause = first_line(error)
    # PyTorch's own are RuntimeErrors; the rest comes from a backward written in Python.
    if not isinstance(error, RuntimeError) or isinstance(error, RecursionError):
        return BackwardError(
            f"A backward pass of this model failed ({type(error).__name__}: {cause}): a custom autograd.Function "
            "raised it where its own derivative was asked for; write its backward with differentiable operations, or "
            "replace the function by plain PyTorch operations."
        )
    match = re.search(r"derivative for '?(?:aten::)?([\w:]+)'? is not implemented", text := text_of(error))
    if match:
        return without_second_derivative(match.group(1))
    if "does not require grad" in text or "once_differentiable" in text:
        return without_second_derivative(ONCE)
    if "use_reentrant" in text or "checkpointing is not compatible" in text.lower():
        return SecondDerivativeError(
            "Reentrant activation checkpointing cannot be differentiated twice; use "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
        )
    if "compiled" in text or "aot_autograd" in text:
        return SecondDerivativeError(
            "torch.compile'd modules cannot be differentiated twice; pass the uncompiled model (model._orig_mod)."
        )
    fix = (
        "do not change tensors in place, neither in the model (mul_, index assignment, buffers) nor in the data"
        if "inplace" in cause
        else "hvp_engine.doctor names the operation"
    )
    return BackwardError(f"A backward pass of this model failed ({cause}); {fix}.")
