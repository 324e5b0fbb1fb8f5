"""Packed symmetric matrices on the CPU; arguments as in `hvp_engine.kernels.packed_symmetric`."""

from __future__ import annotations

from torch import Tensor

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.tensors import address, dtype_number

__all__ = ["pack_covariance", "packed_matvec", "pair_products"]


def pair_products(weight: Tensor, center: Tensor, first: int, last: int, out: Tensor) -> None:
    """Fill products (V, last - first) of pairs of centred columns of the weight (V, d)."""
    rows, d = weight.shape
    native.pair_products(
        dtype_number(weight.dtype), address(weight), address(center), rows, d, first, last, address(out)
    )


def pack_covariance(moments: Tensor, mean: Tensor, first: int, last: int, packed: Tensor) -> None:
    """Fill columns of the packed triangles with moments (N, last - first) minus products of means (N, d)."""
    native.pack_covariance(
        dtype_number(moments.dtype),
        dtype_number(packed.dtype),
        address(moments),
        address(mean),
        mean.shape[0],
        mean.shape[1],
        first,
        last,
        address(packed),
    )


def packed_matvec(packed: Tensor, vectors: Tensor, out: Tensor) -> None:
    """Fill products (K, N, d) of packed triangles with vectors."""
    count, tokens, d = vectors.shape
    native.packed_symmetric_matvec(
        dtype_number(packed.dtype), address(packed), address(vectors), count, tokens, d, address(out)
    )
