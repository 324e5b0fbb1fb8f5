"""Batched ragged reorthogonalisation: what hvp_engine.kernels.reorthogonalize describes, in three reads of each basis.

A program takes one tile of one stream's columns, so that what a stream gives depends on nothing but itself. The passes
are: the dots of the first pass; its update and, while the tile's rows are still in the L2 cache, the dots of the second
pass; the second update with the norm. Each leaves its partial sums in fp64, one row per program, which a second launch
adds in a fixed order: no atomic operations, and equal inputs give equal bits.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from hvp_engine.kernels.scaled_rows import BLOCK
from hvp_engine.kernels.streams import Projection
from hvp_engine.kernels.tensors import dtype_number
from hvp_engine.kernels.triton.resource_case import COMPILE_OPTIONS, ResourceCase

__all__ = ["reorthogonalize", "resource_cases"]

READS_SCALED_ROWS = True

# By the numbers that the table of streams holds.
_BASIS_TYPES = {
    dtype_number(torch.float32): tl.float32,
    dtype_number(torch.bfloat16): tl.bfloat16,
    dtype_number(torch.float64): tl.float64,
    dtype_number(torch.int8): tl.int8,
}
_VECTOR_TYPES = {dtype_number(torch.float32): tl.float32, dtype_number(torch.float64): tl.float64}
# Columns of a tile: each of 256 threads reads 16 bytes of a row, so that rows are added within a thread; of 8 bits it
# reads 4 bytes, for it has no registers for what more would be in fp64.
_TILES = {tl.float32: 1024, tl.bfloat16: 2048, tl.float64: 512, tl.int8: 1024}
_UNALIGNED_TILE = 1024  # at most: loads of single elements need more registers
_BLOCK = tl.constexpr(BLOCK)
_ROWS = 8  # basis rows that are loaded at once
_WARPS = 8
_SUM_TASKS = 512
_SUM_ROWS = 8


@triton.jit
def _stream(streams, s, BASIS: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr):
    """Address of the basis and of the vector, row stride, size and count of a stream."""
    entry = streams + s * 8
    basis = tl.load(entry).to(tl.pointer_type(BASIS))
    vector = tl.load(entry + 1).to(tl.pointer_type(VECTOR))
    stride = tl.load(entry + 2)
    size = tl.load(entry + 3)
    if ALIGNED:  # lets the compiler use loads of 16 bytes
        basis = tl.multiple_of(basis, 16)
        vector = tl.multiple_of(vector, 16)
        stride = tl.multiple_of(stride, 16)
        size = tl.multiple_of(size, 16)
    return basis, vector, stride, size, tl.load(entry + 4)


@triton.jit
def _wide(x):
    """Fp64 by way of fp32, as bf16 needs."""
    return x if x.dtype == tl.float64 else x.to(tl.float32).to(tl.float64)


@triton.jit
def _load_rows(basis, row, column, stride, size, count):
    """Load some columns of some rows in fp64, 0 outside; 8 bits are multiplied by the scales behind them."""
    start = basis + row[:, None] * stride
    mask = (row < count)[:, None] & (column < size)[None, :]
    wide = _wide(tl.load(start + column[None, :], mask=mask, other=0))
    if basis.dtype.element_ty == tl.int8:
        scales = (start + tl.cdiv(size, _BLOCK) * _BLOCK).to(tl.pointer_type(tl.float32))
        wide *= _wide(tl.load(scales + column[None, :] // _BLOCK, mask=mask, other=0.0))
    return wide


@triton.jit(do_not_specialize=["width"])  # it grows by one each step
def project_tiles(
    streams,
    owners,
    coefficients,
    partial,
    squares,
    width,
    BASIS: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
    UPDATE: tl.constexpr,
    DOTS: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One tile of one stream: subtracts coefficients times rows, then takes the dots of the result.

    Args:
        streams: (streams, 8) int64: addresses of basis and vector, row stride, size, count, first task, tasks, and
            the stream's row in what is returned.
        owners: (tasks,) int64: the stream of each program.
        coefficients: (all streams, width) fp64: what UPDATE subtracts.
        partial: (tasks, width) fp64: what DOTS writes.
        squares: (tasks,) fp64: the tile's squared norm after the update, where UPDATE.
        width: Row length of coefficients and partial, at least the largest count.
    """
    task = tl.program_id(0).to(tl.int64)
    s = tl.load(owners + task)
    basis, vector, stride, size, count = _stream(streams, s, BASIS, VECTOR, ALIGNED)
    column = (task - tl.load(streams + s * 8 + 5)) * TILE + tl.arange(0, TILE)
    inside = column < size
    values = _wide(tl.load(vector + column, mask=inside, other=0.0))
    if UPDATE:
        out = tl.load(streams + s * 8 + 7)
        for start in range(0, count, ROWS):
            row = start + tl.arange(0, ROWS)
            rows = _load_rows(basis, row, column, stride, size, count)
            c = tl.load(coefficients + out * width + row, mask=row < count, other=0.0)
            values -= tl.sum(rows * c[:, None], axis=0)
        rounded = values.to(VECTOR)
        tl.store(vector + column, rounded, mask=inside)
        values = _wide(rounded)
        tl.store(squares + task, tl.sum(values * values, axis=0))
    if DOTS:
        # Backwards: the rows read last are the likeliest to be in the cache.
        blocks = tl.cdiv(count, ROWS)
        for block in range(0, blocks):
            row = (blocks - 1 - block) * ROWS + tl.arange(0, ROWS)
            rows = _load_rows(basis, row, column, stride, size, count)
            dots = tl.sum(rows * values[None, :], axis=1)
            tl.store(partial + task * width + row, dots, mask=row < count)


@triton.jit
def _sum_column(source, tasks, BLOCK: tl.constexpr):
    """Add source[0:tasks] in a fixed order."""
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, tasks, BLOCK):
        task = start + tl.arange(0, BLOCK)
        total += tl.load(source + task, mask=task < tasks, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["width"])  # it grows by one each step
def sum_dots(streams, partial, sums, width, TASKS: tl.constexpr, ROWS: tl.constexpr):
    """Add the partial dots of a few rows of one stream: sums (all streams, width) fp64."""
    entry = streams + tl.program_id(1) * 8
    count = tl.load(entry + 4)
    first = tl.load(entry + 5)
    tasks = tl.load(entry + 6)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((TASKS, ROWS), dtype=tl.float64)
    for start in range(0, tasks, TASKS):
        task = start + tl.arange(0, TASKS)
        total += tl.load(
            partial + (first + task)[:, None] * width + row[None, :],
            mask=(task < tasks)[:, None] & (row < count)[None, :],
            other=0.0,
        )
    tl.store(sums + tl.load(entry + 7) * width + row, tl.sum(total, axis=0), mask=row < count)


@triton.jit(do_not_specialize=["width", "num_tasks"])
def finish_streams(
    streams, first_pass, second_pass, squares, norms, lost, width, num_tasks, TASKS: tl.constexpr, ROWS: tl.constexpr
):
    """Add the passes of one stream, and take the roots of its squared norms, (2, num_tasks)."""
    entry = streams + tl.program_id(0) * 8
    count = tl.load(entry + 4)
    first = tl.load(entry + 5)
    tasks = tl.load(entry + 6)
    out = tl.load(entry + 7)
    before = tl.sqrt(_sum_column(squares + first, tasks, TASKS))
    after = tl.sqrt(_sum_column(squares + num_tasks + first, tasks, TASKS))
    largest = tl.zeros((ROWS,), dtype=tl.float64)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        c = tl.load(second_pass + out * width + row, mask=row < count, other=0.0)
        total = tl.load(first_pass + out * width + row, mask=row < count, other=0.0) + c
        tl.store(first_pass + out * width + row, total, mask=row < count)
        largest = tl.maximum(largest, tl.abs(c))
    # A NaN, which the maximum may drop, is in the norm as well.
    tl.store(lost + out, tl.where(before == 0.0, 0.0, tl.max(largest, axis=0) / before))
    tl.store(norms + out, after)


def reorthogonalize(table: NDArray[np.int64], found: Projection) -> None:
    """Make each vector orthogonal, in place, to the leading rows of its basis.

    Enqueued on the device's current stream; the host waits for nothing.

    Args:
        table: As `hvp_engine.kernels.streams.stream_table` gives it.
        found: Filled, on the device of all streams; its coefficients are given as zeros.
    """
    aligned = (table[:, :2] % 16 == 0).all(axis=1) & (table[:, 2:4] % 16 == 0).all(axis=1)
    variants = np.column_stack([table[:, 5:7], aligned])
    with torch.cuda.device_of(found.norms):
        for variant in np.unique(variants, axis=0):
            members = np.flatnonzero((variants == variant).all(axis=1))
            basis_type, vector_type, is_aligned = map(int, variant)
            _project(table[members], members, basis_type, vector_type, is_aligned, found)


def _tile(basis_type: int, aligned: int) -> int:
    columns = _TILES[_BASIS_TYPES[basis_type]]
    return columns if aligned else min(columns, _UNALIGNED_TILE)


def _project(
    table: NDArray[np.int64],
    members: NDArray[np.int64],
    basis_type: int,
    vector_type: int,
    aligned: int,
    found: Projection,
) -> None:
    """Run all passes over the streams of one pair of types."""
    coefficients, norms, lost = found
    device, width, tile = norms.device, coefficients.shape[1], _tile(basis_type, aligned)
    tasks = -(-table[:, 3] // tile)
    num_tasks = int(tasks.sum())
    fields = np.column_stack([table[:, :5], np.cumsum(tasks) - tasks, tasks, members])
    # From pageable memory this copy is staged at once: neither the host nor the device waits.
    streams = torch.from_numpy(fields).to(device, non_blocking=True)
    owners = torch.repeat_interleave(streams[:, 6], output_size=num_tasks)
    partial = torch.empty((num_tasks, width), dtype=torch.float64, device=device)
    squares = torch.empty((2, num_tasks), dtype=torch.float64, device=device)
    second = torch.empty_like(coefficients)
    constants = {
        "BASIS": _BASIS_TYPES[basis_type],
        "VECTOR": _VECTOR_TYPES[vector_type],
        "ALIGNED": bool(aligned),
        "TILE": tile,
        "ROWS": _ROWS,
        "num_warps": _WARPS,
        **COMPILE_OPTIONS,
    }
    sum_grid = (max(1, triton.cdiv(width, _SUM_ROWS)), len(table))
    sizes = {"TASKS": _SUM_TASKS, "ROWS": _SUM_ROWS, "num_warps": _WARPS, **COMPILE_OPTIONS}
    tiles = project_tiles[(num_tasks,)]
    tiles(streams, owners, coefficients, partial, squares[0], width, UPDATE=False, DOTS=True, **constants)
    sum_dots[sum_grid](streams, partial, coefficients, width, **sizes)
    tiles(streams, owners, coefficients, partial, squares[0], width, UPDATE=True, DOTS=True, **constants)
    sum_dots[sum_grid](streams, partial, second, width, **sizes)
    tiles(streams, owners, second, partial, squares[1], width, UPDATE=True, DOTS=False, **constants)
    finish_streams[(len(table),)](streams, coefficients, second, squares, norms, lost, width, num_tasks, **sizes)


def resource_cases() -> list[ResourceCase]:
    """Every pass for each type of basis, aligned; the longest one also without alignment."""
    pointers = {"streams": "*i64", "owners": "*i64", **dict.fromkeys(("coefficients", "partial", "squares"), "*fp64")}
    signature = {**pointers, "width": "i32"}
    passes = {"dots": (False, True, True), "update + dots": (True, True, True), "update": (True, False, True)}
    passes["update + dots, unaligned"] = (True, True, False)
    cases = []
    for number, basis in _BASIS_TYPES.items():
        vector = tl.float64 if basis == tl.float64 else tl.float32
        for label, (update, dots, aligned) in passes.items():
            constants = {"BASIS": basis, "VECTOR": vector, "ALIGNED": aligned, "UPDATE": update, "DOTS": dots}
            constants |= {"TILE": _tile(number, aligned), "ROWS": _ROWS}
            cases.append(ResourceCase(project_tiles, f"{basis} basis, {label}", signature, constants, _WARPS))
    sizes = {"TASKS": _SUM_TASKS, "ROWS": _SUM_ROWS}
    signature = {"streams": "*i64", "partial": "*fp64", "sums": "*fp64", "width": "i32"}
    cases.append(ResourceCase(sum_dots, "all types", signature, sizes, _WARPS))
    pointers = dict.fromkeys(("first_pass", "second_pass", "squares", "norms", "lost"), "*fp64")
    signature = {"streams": "*i64", **pointers, "width": "i32", "num_tasks": "i32"}
    cases.append(ResourceCase(finish_streams, "all types", signature, sizes, _WARPS))
    return cases
