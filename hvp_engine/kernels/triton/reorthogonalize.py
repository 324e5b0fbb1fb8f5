"""Batched ragged reorthogonalisation: what hvp_engine.kernels.reorthogonalize describes.

A program takes one tile of one stream's columns, so that what a stream gives depends on nothing but itself. Pass 0
takes the dots with the near rows; pass 1 their update and the dots with all rows; passes 2 and 3 are updates that only
those streams have which need them: the device decides, the programs of the others leave at once, and the host waits for
nothing. Each pass leaves its partial sums in fp64, one row per program, which a
second launch adds in a fixed order: no atomic operations, and equal inputs give equal bits.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from hvp_engine.kernels.scaled_rows import BLOCK
from hvp_engine.kernels.streams import LARGE_SHARE, Projection, Rule
from hvp_engine.kernels.tensors import dtype_number
from hvp_engine.kernels.triton.launching import LAUNCH_FAILURES, refuse_launch
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
# reads 2 bytes, for it has no registers for what more would be in fp64.
_TILES = {tl.float32: 1024, tl.bfloat16: 2048, tl.float64: 512, tl.int8: 512}
_UNALIGNED_TILE = 512  # at most: loads of single elements need more registers
_BLOCK = tl.constexpr(BLOCK)
_ROWS = 8  # basis rows that are loaded at once
_WIDE_PAIR_ROWS = 4  # the same of fp64 beside the last row, which takes as many registers as the vector
_WARPS = 8
_SUM_TASKS = 512
_SUM_ROWS = 8
_FIELDS = tl.constexpr(9)  # of a stream in the table that the kernels read
_PASSES = 4


@triton.jit
def _stream(streams, s, BASIS: tl.constexpr, VECTOR: tl.constexpr, ALIGNED: tl.constexpr):
    """Address of the basis and of the vector, row stride, size and count of a stream."""
    entry = streams + s * _FIELDS
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
def _rows_of(basis, stride, size, row, column, inside, first, count):
    """Rows of a tile in fp64, 8 bits times the scales behind them; zeros where not among first .. count - 1."""
    start = basis + row[:, None] * stride
    mask = ((row >= first) & (row < count))[:, None] & inside[None, :]
    wide = _wide(tl.load(start + column[None, :], mask=mask, other=0))
    if basis.dtype.element_ty == tl.int8:
        scales = (start + tl.cdiv(size, _BLOCK) * _BLOCK).to(tl.pointer_type(tl.float32))
        wide *= _wide(tl.load(scales + column[None, :] // _BLOCK, mask=mask, other=0.0))
    return wide


@triton.jit
def _subtract(
    basis, stride, size, column, inside, first, count, c, d, values, others, BOTH: tl.constexpr, ROWS: tl.constexpr
):
    """Subtract rows first .. count - 1 times c from a tile's values and, where BOTH, times d from others."""
    for start in range(first, count, ROWS):
        row = start + tl.arange(0, ROWS)
        rows = _rows_of(basis, stride, size, row, column, inside, first, count)
        values -= tl.sum(rows * tl.load(c + row, mask=row < count, other=0.0)[:, None], axis=0)
        if BOTH:
            others -= tl.sum(rows * tl.load(d + row, mask=row < count - 1, other=0.0)[:, None], axis=0)
    return values, others


@triton.jit
def _dots(
    basis, stride, size, column, inside, first, count, to, last, values, others, BOTH: tl.constexpr, ROWS: tl.constexpr
):
    """Write the products of rows first .. count - 1 with a tile's values and, where BOTH, with others."""
    # Backwards: the rows read last are the likeliest to be in the cache.
    blocks = tl.cdiv(count - first, ROWS)
    for block in range(0, blocks):
        row = first + (blocks - 1 - block) * ROWS + tl.arange(0, ROWS)
        rows = _rows_of(basis, stride, size, row, column, inside, first, count)
        tl.store(to + row, tl.sum(rows * values[None, :], axis=1), mask=row < count)
        if BOTH:
            tl.store(last + row, tl.sum(rows * others[None, :], axis=1), mask=row < count)


@triton.jit(do_not_specialize=["width"])  # it grows by one each step
def project_tiles(
    streams,
    owners,
    passes,
    coefficients,
    last_coefficients,
    partial,
    last_partial,
    squares,
    width,
    BASIS: tl.constexpr,
    VECTOR: tl.constexpr,
    ALIGNED: tl.constexpr,
    NUMBER: tl.constexpr,
    PAIRS: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One tile of one stream: subtracts coefficients times rows, then takes the dots of the result.

    Args:
        streams: (streams, 9) int64: addresses of basis and vector, row stride, size, count, first task, tasks, the
            stream's row in what is returned, and how many of its last rows are near.
        owners: (tasks,) int64: the stream of each program.
        passes: (all streams,) int32: how many there are of each stream, from pass 2 on.
        coefficients: (all streams, width) fp64: what is subtracted, from pass 1 on.
        last_coefficients: The same for the last row: in pass 2, where PAIRS.
        partial: (tasks, width) fp64: dots of the vector.
        last_partial: The same of the last row: in pass 1, where PAIRS.
        squares: (tasks,) fp64: the tile's squared norm after the update, from pass 1 on.
        width: Row length of coefficients and partial, at least the largest count.
    """
    task = tl.program_id(0).to(tl.int64)
    s = tl.load(owners + task)
    basis, vector, stride, size, count = _stream(streams, s, BASIS, VECTOR, ALIGNED)
    out = tl.load(streams + s * _FIELDS + 7)
    first = tl.maximum(0, count - tl.load(streams + s * _FIELDS + 8))  # the first of the near rows
    known = 2
    if NUMBER >= 2:
        known = tl.load(passes + out)
        if known <= NUMBER:
            return
        first = 0
    column = (task - tl.load(streams + s * _FIELDS + 5)) * TILE + tl.arange(0, TILE)
    inside = column < size
    values = _wide(tl.load(vector + column, mask=inside, other=0.0))
    others = values
    last_row = basis + (count - 1) * stride + column
    has_last = inside & (count > 0)
    if PAIRS:
        others = _wide(tl.load(last_row, mask=has_last, other=0.0))
    if NUMBER >= 1:
        c, d, both = coefficients + out * width, last_coefficients + out * width, PAIRS and NUMBER == 2
        values, others = _subtract(basis, stride, size, column, inside, first, count, c, d, values, others, both, ROWS)
        rounded = values.to(VECTOR)
        tl.store(vector + column, rounded, mask=inside)
        values = _wide(rounded)
        tl.store(squares + task, tl.sum(values * values, axis=0))
        if PAIRS and NUMBER == 2:
            tl.debug_barrier()  # the row is read by all threads above, and below
            tl.store(last_row, others.to(BASIS), mask=has_last)
            tl.debug_barrier()
    is_measured = NUMBER < 2
    if NUMBER == 2:
        is_measured = known > 3
    if is_measured:
        measured = first
        if NUMBER == 1:
            measured = 0
        to, last, both = partial + task * width, last_partial + task * width, PAIRS and NUMBER == 1
        _dots(basis, stride, size, column, inside, measured, count, to, last, values, others, both, ROWS)


@triton.jit
def _sum_column(source, tasks, BLOCK: tl.constexpr):
    """Add source[0:tasks] in a fixed order."""
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, tasks, BLOCK):
        task = start + tl.arange(0, BLOCK)
        total += tl.load(source + task, mask=task < tasks, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["width"])  # it grows by one each step
def sum_dots(streams, passes, partial, sums, width, NUMBER: tl.constexpr, TASKS: tl.constexpr, ROWS: tl.constexpr):
    """Add the partial dots of pass NUMBER, of a few rows of one stream: sums (all streams, width) fp64."""
    entry = streams + tl.program_id(1) * _FIELDS
    count = tl.load(entry + 4)
    task_begin = tl.load(entry + 5)
    tasks = tl.load(entry + 6)
    out = tl.load(entry + 7)
    first = tl.zeros_like(count)
    if NUMBER == 0:
        first = tl.maximum(0, count - tl.load(entry + 8))
    known = 4
    if NUMBER == 2:
        known = tl.load(passes + out)
    if known <= 3:
        return
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_measured = (row >= first) & (row < count)
    total = tl.zeros((TASKS, ROWS), dtype=tl.float64)
    for start in range(0, tasks, TASKS):
        task = start + tl.arange(0, TASKS)
        total += tl.load(
            partial + (task_begin + task)[:, None] * width + row[None, :],
            mask=(task < tasks)[:, None] & is_measured[None, :],
            other=0.0,
        )
    tl.store(sums + out * width + row, tl.sum(total, axis=0), mask=row < count)


@triton.jit
def _sizes(dots, other, count, ROWS: tl.constexpr):
    """Largest magnitude and sum of squares of some dots, and their product with others."""
    largest = tl.zeros((ROWS,), dtype=tl.float64)
    square = tl.zeros((ROWS,), dtype=tl.float64)
    overlap = tl.zeros((ROWS,), dtype=tl.float64)
    for start in range(0, count, ROWS):
        row = start + tl.arange(0, ROWS)
        d = tl.load(dots + row, mask=row < count, other=0.0)
        largest = tl.maximum(largest, tl.abs(d))
        square += d * d
        overlap += d * tl.load(other + row, mask=row < count, other=0.0)
    return tl.max(largest, axis=0), tl.sum(square, axis=0), tl.sum(overlap, axis=0)


@triton.jit(do_not_specialize=["width", "tolerance", "postponed"])
def finish_streams(
    streams,
    passes,
    total,
    second,
    last,
    squares,
    norms,
    lost,
    width,
    tolerance: tl.float64,
    postponed: tl.float64,
    NUMBER: tl.constexpr,
    PAIRS: tl.constexpr,
    LARGE: tl.constexpr,
    TASKS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Keep what is known of one stream after pass NUMBER, and decide after pass 1 how many there are."""
    entry = streams + tl.program_id(0) * _FIELDS
    count = tl.load(entry + 4)
    out = tl.load(entry + 7)
    known = 4
    if NUMBER >= 2:
        known = tl.load(passes + out)
        if known <= NUMBER:
            return
    norm = tl.sqrt(_sum_column(squares + tl.load(entry + 5), tl.load(entry + 6), TASKS))
    tl.store(norms + out, norm)
    if NUMBER == 3 or (NUMBER == 2 and known <= 3):
        return
    largest, square, _ = _sizes(second + out * width, second + out * width, count, ROWS)
    overlap = 0.0 * square  # of the last row's components, which the vector was not measured without
    # A NaN, which the maximum may drop, is in the norm as well.
    cosine = tl.where(norm == 0.0, 0.0, largest / norm)
    if NUMBER == 1:
        share = tl.where(norm == 0.0, 0.0, tl.sqrt(square) / norm)
        enough = share <= tolerance
        if PAIRS:
            cosine, square, overlap = _sizes(last + out * width, second + out * width, count - 1, ROWS)
            enough = (share <= postponed) & (tl.sqrt(square) <= tolerance)
        once = tl.load(entry + 8) >= count
        known = tl.where(enough, 2, tl.where(once | (share <= LARGE), 3, 4))
        tl.store(passes + out, known)
        # What is taken out leaves as much of it as the basis is orthogonal.
        cosine = tl.where(enough | once, cosine, cosine * tolerance)
    tl.store(lost + out, cosine)
    if known > 2:
        for start in range(0, count, ROWS):
            row = start + tl.arange(0, ROWS)
            c = tl.load(second + out * width + row, mask=row < count, other=0.0)
            if PAIRS and NUMBER == 1:
                c = tl.where(row == count - 1, c - overlap, c)
                tl.store(second + out * width + row, c, mask=row < count)
            before = tl.load(total + out * width + row, mask=row < count, other=0.0)
            tl.store(total + out * width + row, before + c, mask=row < count)


def reorthogonalize(table: NDArray[np.int64], rule: Rule, found: Projection) -> None:
    """Make each vector orthogonal, in place, to the leading rows of its basis.

    Enqueued on the device's current stream; the host waits for nothing.

    Args:
        table: As `hvp_engine.kernels.streams.stream_table` gives it.
        rule: As in `hvp_engine.kernels.reorthogonalize.reorthogonalize`.
        found: Filled, on the device of all streams; its coefficients are given as zeros.
    """
    aligned = (table[:, :2] % 16 == 0).all(axis=1) & (table[:, 2:4] % 16 == 0).all(axis=1)
    variants = np.column_stack([table[:, 5:7], aligned])
    with torch.cuda.device_of(found.norms):
        for variant in np.unique(variants, axis=0):
            members = np.flatnonzero((variants == variant).all(axis=1))
            basis_type, vector_type, is_aligned = map(int, variant)
            try:
                _project(table[members], members, (basis_type, vector_type, is_aligned), rule, found)
            except LAUNCH_FAILURES as error:
                refuse_launch(project_tiles, error)


def _shape(basis_type: int, aligned: int, pairs: bool) -> dict[str, int]:
    """Columns and rows of a tile."""
    basis = _BASIS_TYPES[basis_type]
    rows = _WIDE_PAIR_ROWS if pairs and basis == tl.float64 else _ROWS
    return {"TILE": _TILES[basis] if aligned else min(_TILES[basis], _UNALIGNED_TILE), "ROWS": rows}


def _project(
    table: NDArray[np.int64], members: NDArray[np.int64], variant: tuple[int, int, int], rule: Rule, found: Projection
) -> None:
    """Run all passes over the streams of one pair of types, aligned or not."""
    (basis_type, vector_type, aligned), (coefficients, norms, lost) = variant, found
    device, width, pairs = norms.device, coefficients.shape[1], rule.postponed is not None
    shape = _shape(basis_type, aligned, pairs)
    tasks = -(-table[:, 3] // shape["TILE"])
    num_tasks = int(tasks.sum())
    near = [rule.first_rows(count) for count in table[:, 4].tolist()]
    fields = np.column_stack([table[:, :5], np.cumsum(tasks) - tasks, tasks, members, near])
    # From pageable memory this copy is staged at once: neither the host nor the device waits.
    streams = torch.from_numpy(fields).to(device, non_blocking=True)
    owners = torch.repeat_interleave(streams[:, 6], output_size=num_tasks)
    partial = torch.empty((1 + pairs, num_tasks, width), dtype=torch.float64, device=device)
    second = torch.empty((1 + pairs, *coefficients.shape), dtype=torch.float64, device=device)
    squares = torch.empty(num_tasks, dtype=torch.float64, device=device)
    passes = torch.empty(len(norms), dtype=torch.int32, device=device)
    options = {"num_warps": _WARPS, **COMPILE_OPTIONS}
    constants = {"BASIS": _BASIS_TYPES[basis_type], "VECTOR": _VECTOR_TYPES[vector_type], "ALIGNED": bool(aligned)}
    constants |= {"PAIRS": pairs, **shape, **options}
    sizes = {"TASKS": _SUM_TASKS, "ROWS": _SUM_ROWS, **options}
    sum_grid = (max(1, triton.cdiv(width, _SUM_ROWS)), len(table))
    thresholds = (rule.tolerance, rule.postponed or 0.0)
    # With all rows in the first pass two are enough, and a third update is never asked for.
    for number in range(0 if any(near) else 1, _PASSES - (rule.near is None)):
        taken = coefficients if number < 2 else second[0]
        project_tiles[(num_tasks,)](
            streams, owners, passes, taken, second[-1], partial[0], partial[-1], squares, width, NUMBER=number,
            **constants,
        )  # fmt: skip
        if number < 3:
            sums = coefficients if number == 0 else second[0]
            sum_dots[sum_grid](streams, passes, partial[0], sums, width, NUMBER=number, **sizes)
        if pairs and number == 1:
            sum_dots[sum_grid](streams, passes, partial[-1], second[-1], width, NUMBER=number, **sizes)
        if number > 0:
            finish_streams[(len(table),)](
                streams, passes, coefficients, second[0], second[-1], squares, norms, lost, width, *thresholds,
                NUMBER=number, PAIRS=pairs, LARGE=LARGE_SHARE, **sizes,
            )  # fmt: skip


def resource_cases() -> list[ResourceCase]:
    """Every pass for each type of basis, aligned; the longest one also without alignment."""
    doubles = ("coefficients", "last_coefficients", "partial", "last_partial", "squares")
    pointers = {"streams": "*i64", "owners": "*i64", "passes": "*i32", **dict.fromkeys(doubles, "*fp64")}
    signature = {**pointers, "width": "i32"}
    cases = []
    for number, basis in _BASIS_TYPES.items():
        vector = tl.float64 if basis == tl.float64 else tl.float32
        for pairs in (False, True)[: 1 + (basis == vector)]:
            variants = [(0, True), (1, True), (2, True), (1, False)] + [(3, True)] * (not pairs)
            for step, aligned in variants:
                constants = {"BASIS": basis, "VECTOR": vector, "ALIGNED": aligned, "NUMBER": step, "PAIRS": pairs}
                constants |= _shape(number, aligned, pairs)
                label = f"{basis} basis, pass {step}{', with last row' * pairs}{', unaligned' * (not aligned)}"
                cases.append(ResourceCase(project_tiles, label, signature, constants, _WARPS))
    sizes = {"TASKS": _SUM_TASKS, "ROWS": _SUM_ROWS}
    signature = {"streams": "*i64", "passes": "*i32", "partial": "*fp64", "sums": "*fp64", "width": "i32"}
    cases.append(ResourceCase(sum_dots, "all types", signature, {"NUMBER": 1, **sizes}, _WARPS))
    pointers = dict.fromkeys(("total", "second", "last", "squares", "norms", "lost"), "*fp64")
    signature = {"streams": "*i64", "passes": "*i32", **pointers, "width": "i32", "tolerance": "fp64"}
    signature["postponed"] = "fp64"
    constants = {"NUMBER": 1, "PAIRS": True, "LARGE": LARGE_SHARE, **sizes}
    cases.append(ResourceCase(finish_streams, "all types", signature, constants, _WARPS))
    return cases
