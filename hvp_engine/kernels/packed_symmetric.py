"""One symmetric d x d matrix per token, stored as packed upper triangles: build, centre, multiply.

Row i of a triangle holds the columns i..d-1; rows follow each other, d (d + 1) / 2 numbers in all.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from hvp_engine.kernels.registry import is_fused, optional_implementation
from hvp_engine.kernels.tensors import accumulator

__all__ = [
    "pack_covariance",
    "pack_covariance_ref",
    "packed_matvec",
    "packed_matvec_ref",
    "packed_size",
    "pair_products",
    "pair_products_ref",
]


def packed_size(d: int) -> int:
    """Return the length of a packed d x d triangle."""
    return d * (d + 1) // 2


def _kernels(tensor: Tensor) -> ModuleType | None:
    """Return the module that serves a tensor, or None where the reference does."""
    return optional_implementation("packed_symmetric", tensor.device) if is_fused("packed_symmetric", tensor) else None


def _pairs(d: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.triu_indices(d, d)
    return rows[first:last], columns[first:last]


def pair_products_ref(weight: Tensor, center: Tensor, first: int, last: int) -> Tensor:
    """Return the products of `pair_products` in plain PyTorch."""
    i, j = _pairs(weight.shape[1], first, last)
    centered = weight - center
    return centered[:, i] * centered[:, j]


def pair_products(weight: Tensor, center: Tensor, first: int, last: int, out: Tensor) -> None:
    """Multiply pairs of centred columns: a panel of the factor from which second moments are formed.

    Args:
        weight: Rows of a matrix (V, d), float32 or float64, contiguous.
        center: Row (d) subtracted from each of them.
        first: First packed pair of the panel.
        last: One past the last pair.
        out: Contiguous products (V, last - first), overwritten.
    """
    kernels = _kernels(weight)
    if kernels is None:
        out.copy_(pair_products_ref(weight, center, first, last))
    else:
        kernels.pair_products(weight, center, first, last, out)


def pack_covariance_ref(moments: Tensor, mean: Tensor, first: int, last: int, packed: Tensor) -> None:
    """Do the same as `pack_covariance` in plain PyTorch."""
    i, j = _pairs(mean.shape[1], first, last)
    packed[:, first:last] = moments - mean[:, i] * mean[:, j]


def pack_covariance(moments: Tensor, mean: Tensor, first: int, last: int, packed: Tensor) -> None:
    """Turn second moments into covariances, and store them in their columns of the packed triangles.

    Args:
        moments: Second moments (N, last - first), float32 or float64, contiguous.
        mean: First moments (N, d), same dtype, contiguous.
        first: First packed pair.
        last: One past the last pair.
        packed: Contiguous triangles (N, d (d + 1) / 2) in the moments' dtype, or bfloat16 for float32
            moments.
    """
    kernels = _kernels(moments)
    if kernels is None:
        pack_covariance_ref(moments, mean, first, last, packed)
    else:
        kernels.pack_covariance(moments, mean, first, last, packed)


def packed_matvec_ref(packed: Tensor, vectors: Tensor) -> Tensor:
    """Return the products of `packed_matvec` in plain PyTorch, which unpacks the matrices."""
    d = vectors.shape[-1]
    i, j = torch.triu_indices(d, d)
    dense = packed.new_zeros(packed.shape[0], d, d, dtype=vectors.dtype)
    dense[:, i, j] = packed.to(vectors.dtype)
    dense[:, j, i] = packed.to(vectors.dtype)
    return torch.einsum("nij,knj->kni", dense, vectors)


def packed_matvec(packed: Tensor, vectors: Tensor) -> Tensor:
    """Multiply each token's matrix with its vectors; the matrices are read once for all K.

    Args:
        packed: Triangles (N, d (d + 1) / 2), float32, float64 or bfloat16, contiguous.
        vectors: Vectors (K, N, d) in the accumulator type of `packed` (float32 or float64).

    Returns:
        Products (K, N, d).
    """
    kernels = _kernels(packed)
    if kernels is None:
        return packed_matvec_ref(packed, vectors)
    vectors = vectors.to(accumulator(packed.dtype)).contiguous()
    out = torch.empty_like(vectors)
    kernels.packed_matvec(packed, vectors, out)
    return out
