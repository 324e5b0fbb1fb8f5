"""Layer normalisation, differentiable twice in fused passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.applies import normalize_applies
from hvp_engine.ops.arguments import run_plain
from hvp_engine.ops.normalize_autograd import NormalizeSpec, check_shapes, normalize
from hvp_engine.system.torch_private import inside_transform

__all__ = ["layer_norm", "layer_norm_ref"]


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise the trailing dimensions to mean 0 and variance 1, then scale and shift them.

    Ba, Kiros and Hinton (2016), "Layer Normalization". Each derivative is one
    pass over memory; sums over rows give the same bits at every thread count. Fused kernels serve
    tensors of dtype float32, float64 and bfloat16 (computed in float32) on CPUs and CUDA, with parameters of the
    same dtype or float32; everything else takes `layer_norm_ref`.

    Args:
        input: Shape (..., *normalized_shape), any strides.
        normalized_shape: The trailing dimensions that form a row.
        weight: Shape normalized_shape, or None for 1.
        bias: Shape normalized_shape, or None for 0.
        eps: Added to the variance.

    Returns:
        A tensor of the input's shape and dtype.

    Raises:
        ConfigurationError: The shapes do not fit together, or a tensor is not of real floating-point numbers.
    """
    size = check_shapes("layer_norm", input, normalized_shape, weight, bias)
    if normalize_applies(input, weight, bias):
        return normalize(input, weight, bias, NormalizeSpec("layer_norm", True, size, eps))
    if inside_transform():
        return _written_out(input, size, weight, bias, eps)
    operands = {"input": input, "weight": weight, "bias": bias}
    return run_plain(
        "layer_norm", lambda: layer_norm_ref(input, normalized_shape, weight, bias, eps), operands, ("weight", "bias")
    )


def _written_out(input: Tensor, size: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Compute `layer_norm` in elementary operations: the third derivative of PyTorch's own is wrong (2.9 to 2.13)."""
    rows = input.to(accumulator(input.dtype)).reshape(-1, size)
    shifted = rows - rows.mean(-1, keepdim=True)
    y = shifted * torch.rsqrt((shifted * shifted).mean(-1, keepdim=True) + eps)
    y = y if weight is None else y * weight.reshape(-1)
    y = y if bias is None else y + bias.reshape(-1)
    return y.to(input.dtype).reshape(input.shape)


def layer_norm_ref(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Compute `layer_norm` in plain PyTorch."""
    output: Tensor = torch.ops.aten.layer_norm.default(input, normalized_shape, weight, bias, eps)
    return output
