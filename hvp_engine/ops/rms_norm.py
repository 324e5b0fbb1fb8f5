"""Root-mean-square normalisation, differentiable twice in fused passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.applies import normalize_applies
from hvp_engine.ops.arguments import run_plain
from hvp_engine.ops.normalize_autograd import NormalizeSpec, check_shapes, normalize

__all__ = ["rms_norm", "rms_norm_ref"]


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Divide the trailing dimensions by their root mean square, then scale them.

    Zhang and Sennrich (2019), "Root Mean Square Layer Normalization". Each derivative is one
    pass over memory; sums over rows give the same bits at every thread count. Fused kernels serve
    tensors of dtype float32, float64 and bfloat16 (computed in float32) on CPUs and CUDA, with parameters of the
    same dtype or float32; everything else takes `rms_norm_ref`.

    Args:
        input: Shape (..., *normalized_shape), any strides.
        normalized_shape: The trailing dimensions that form a row.
        weight: Shape normalized_shape, or None for 1.
        eps: Added to the mean square; None for the machine epsilon of the compute dtype.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        ConfigurationError: The shapes do not fit together, or a tensor is not of real floating-point numbers.
    """
    size = check_shapes("rms_norm", input, normalized_shape, weight, None)
    if normalize_applies(input, weight, None):
        if eps is None:
            eps = torch.finfo(accumulator(input.dtype)).eps
        return normalize(input, weight, None, NormalizeSpec("rms_norm", False, size, eps))
    operands = {"input": input, "weight": weight}
    return run_plain("rms_norm", lambda: rms_norm_ref(input, normalized_shape, weight, eps), operands, ("weight",))


def rms_norm_ref(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Compute `rms_norm` in plain PyTorch."""
    output: Tensor = torch.ops.aten.rms_norm.default(input, normalized_shape, weight, eps)
    return output
