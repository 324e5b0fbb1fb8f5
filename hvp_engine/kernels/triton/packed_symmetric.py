"""Packed symmetric matrices, one per token: factors of their second moments, centring, products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hvp_engine.kernels.triton.resource_case import ResourceCase
from hvp_engine.kernels.triton.rows import COUNTS, ELEMENTS, launch, load_wide, variant, wide

__all__ = ["pack_covariance", "packed_matvec", "pair_products", "resource_cases"]

_PAIR_ROWS = 8
_PAIRS = 256
_MOST_VECTORS = 8  # served by one read of the matrices


@triton.jit
def _row_offset(i, d):
    return i * d - i * (i - 1) // 2


@triton.jit
def _pair_of(q, d):
    """Row and column of the packed pairs q: the root of _row_offset(i) = q, mended where rounding missed it."""
    b = 2.0 * d.to(tl.float64) + 1.0
    i = ((b - tl.sqrt(tl.maximum(b * b - 8.0 * q.to(tl.float64), 0.0))) * 0.5).to(tl.int64)
    i = tl.where(_row_offset(i, d) > q, i - 1, i)
    i = tl.where(_row_offset(i + 1, d) <= q, i + 1, i)
    return i, i + q - _row_offset(i, d)


@triton.jit(do_not_specialize=COUNTS)
def packed_pair_products(
    weight, center, out, rows, d, first, pairs, BLOCK_ROWS: tl.constexpr, BLOCK_PAIRS: tl.constexpr
):
    tiles = tl.cdiv(pairs, BLOCK_PAIRS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    pair = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)[None, :]
    mask = (row < rows) & (pair < pairs)
    i, j = _pair_of(tl.minimum(pair, pairs - 1) + first, tl.cast(d, tl.int64))
    left = tl.load(weight + row * d + i, mask=mask, other=0.0) - tl.load(center + i)
    right = tl.load(weight + row * d + j, mask=mask, other=0.0) - tl.load(center + j)
    tl.store(out + row * pairs + pair, left * right, mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def packed_covariance(
    moments, mean, packed, rows, d, first, pairs, BLOCK_ROWS: tl.constexpr, BLOCK_PAIRS: tl.constexpr
):
    tiles = tl.cdiv(pairs, BLOCK_PAIRS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    pair = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)[None, :]
    mask = (row < rows) & (pair < pairs)
    wide_d = tl.cast(d, tl.int64)
    i, j = _pair_of(tl.minimum(pair, pairs - 1) + first, wide_d)
    product = tl.load(mean + row * d + i, mask=mask, other=0.0) * tl.load(mean + row * d + j, mask=mask, other=0.0)
    covariance = tl.load(moments + row * pairs + pair, mask=mask, other=0.0) - product
    tl.store(packed + row * (wide_d * (wide_d + 1) // 2) + first + pair, covariance, mask=mask)


# A program owns a token. An element above the diagonal is loaded once and serves both of its triangles: its row's
# product stays in registers, its column's is added to `out`. The barriers order those additions: lanes that hold copies
# of one element must all have loaded it before one of them stores.
@triton.jit(do_not_specialize=COUNTS)
def packed_matvec_kernel(
    packed, vectors, out, count, tokens, d, VECTORS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    wide_d = tl.cast(d, tl.int64)
    matrix = packed + token * (wide_d * (wide_d + 1) // 2)
    k = tl.arange(0, VECTORS)[:, None]
    at = (k.to(tl.int64) * tokens + token) * d
    for first in range(0, d, ROWS):
        i = first + tl.arange(0, ROWS)
        row_start = matrix + (_row_offset(i.to(tl.int64), wide_d) - i)[:, None]
        in_rows = (k < count) & (i < d)[None, :]
        u_rows = load_wide(vectors + at + i[None, :], in_rows)
        total = tl.zeros_like(u_rows)
        for begin in range(first, d, COLUMNS):
            j = begin + tl.arange(0, COLUMNS)[None, :]
            in_columns = (k < count) & (j < d)
            a = load_wide(row_start + j, (i[:, None] <= j) & (j < d))
            u_columns = load_wide(vectors + at + j, in_columns)
            total += tl.sum(a[None, :, :] * u_columns[:, None, :], 2)
            above = tl.where(i[:, None] < j, a, 0.0)
            mirrored = tl.sum(above[None, :, :] * u_rows[:, :, None], 1)
            before = load_wide(out + at + j, in_columns)
            tl.debug_barrier()
            tl.store(out + at + j, before + mirrored, mask=in_columns)
        tl.debug_barrier()
        before = load_wide(out + at + i[None, :], in_rows)
        tl.debug_barrier()
        tl.store(out + at + i[None, :], before + total, mask=in_rows)
        tl.debug_barrier()


def _launch_pairs(kernel: Any, operands: Sequence[Tensor], shape: torch.Size, first: int, last: int) -> None:
    rows, d = shape
    programs = triton.cdiv(rows, _PAIR_ROWS) * triton.cdiv(last - first, _PAIRS)
    launch(kernel, programs, *operands, rows, d, first, last - first, _PAIR_ROWS, _PAIRS)


def pair_products(weight: Tensor, center: Tensor, first: int, last: int, out: Tensor) -> None:
    """Fill products (V, last - first) of pairs of centred columns of the weight (V, d)."""
    _launch_pairs(packed_pair_products, (weight, center, out), weight.shape, first, last)


def pack_covariance(moments: Tensor, mean: Tensor, first: int, last: int, packed: Tensor) -> None:
    """Fill columns of the packed triangles with moments (N, last - first) minus products of means (N, d)."""
    _launch_pairs(packed_covariance, (moments, mean, packed), mean.shape, first, last)


def _matvec_constants(vectors: int, itemsize: int) -> dict[str, int]:
    """Choose a tile of the matrix whose products with all vectors fit into registers."""
    return {"VECTORS": vectors, "ROWS": 32 if vectors * itemsize < 16 else 16, "COLUMNS": 64 if itemsize == 4 else 32}


def packed_matvec(packed: Tensor, vectors: Tensor, out: Tensor) -> None:
    """Fill products (K, N, d) of packed triangles with vectors; 8 vectors are one read of the triangles."""
    out.zero_()
    for some_vectors, some_out in zip(vectors.split(_MOST_VECTORS), out.split(_MOST_VECTORS), strict=True):
        count, tokens, d = some_vectors.shape
        constants = _matvec_constants(triton.next_power_of_2(count), vectors.dtype.itemsize)
        launch(packed_matvec_kernel, tokens, packed, some_vectors, some_out, count, tokens, d, **constants, num_warps=8)


def resource_cases() -> list[ResourceCase]:
    """Declare the variants: a single vector and the most that share one read."""
    blocks = {"BLOCK_ROWS": _PAIR_ROWS, "BLOCK_PAIRS": _PAIRS}
    cases = []
    for element in ELEMENTS:
        accumulator = wide(element)
        pointers = {"packed": element, "vectors out": accumulator}
        for vectors in (1, _MOST_VECTORS):
            constants = _matvec_constants(vectors, 8 if element == "fp64" else 4)
            cases.append(
                variant(packed_matvec_kernel, f"{element}, {vectors} vectors", pointers, constants, num_warps=8)
            )
        means = {"moments mean": accumulator, "packed": element}
        cases.append(variant(packed_covariance, element, means, blocks))
    cases += [
        variant(packed_pair_products, element, {"weight center out": element}, blocks) for element in ("fp32", "fp64")
    ]
    return cases
