"""Cross-entropy rows: losses and row statistics, gradient, and its derivative; a program owns its rows.

With L = log sum exp z, loss = hit (L - z_target) + smooth sum_c w_c (L - z_c), and its gradient is
mass p - hit e_target - smooth w; mass = hit + smooth sum w.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hvp_engine.kernels.records import CrossEntropyRows
from hvp_engine.kernels.triton.resource_case import ResourceCase
from hvp_engine.kernels.triton.rows import (
    COUNTS,
    ELEMENTS,
    launch,
    load_wide,
    softmax_statistics,
    tile_of,
    variant,
    wide,
)

__all__ = ["cross_entropy_backward", "cross_entropy_forward", "cross_entropy_hvp", "resource_cases"]


@triton.jit
def _row_terms(row, target, ignore_index, class_weight, weight_sum, HIT: tl.constexpr, SMOOTH: tl.constexpr, like):
    """Return whether rows are kept, their class (0 if not), and the factors hit and mass of the gradient."""
    index = tl.load(target + row)
    kept = index != ignore_index
    index = tl.where(kept, index, 0)
    if class_weight is None:
        hit = tl.full(like.shape, HIT, like.dtype)
        mass = tl.full(like.shape, 1.0, like.dtype)
    else:
        hit = HIT * tl.load(class_weight + index)
        mass = hit + SMOOTH * tl.load(weight_sum)
    return kept, index, hit, mass


@triton.jit(do_not_specialize=COUNTS)
def cross_entropy_forward_kernel(
    logits,
    target,
    class_weight,
    weight_sum,
    statistics,
    loss,
    rows,
    columns,
    ignore_index,
    HIT: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    stored = row < rows
    row = tl.minimum(row, rows - 1)
    at = logits + row[:, None] * columns
    largest, total = softmax_statistics(at, columns, BLOCK_ROWS, BLOCK_COLUMNS)
    kept, index, hit, _ = _row_terms(row, target, ignore_index, class_weight, weight_sum, HIT, SMOOTH, largest)
    log_total = tl.log(total)
    value = hit * ((largest - load_wide(logits + row * columns + index, stored)) + log_total)
    if SMOOTH != 0:
        spread = tl.zeros_like(value)
        for start in range(0, columns, BLOCK_COLUMNS):
            column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
            mask = column < columns
            missing = (largest[:, None] - load_wide(at + column, mask)) + log_total[:, None]
            if class_weight is not None:
                missing *= tl.load(class_weight + column, mask=mask, other=0.0)
            spread += tl.sum(tl.where(mask, missing, 0.0), 1)
        value += SMOOTH * spread
    tl.store(statistics + 2 * row, largest, mask=stored)
    tl.store(statistics + 2 * row + 1, 1.0 / total, mask=stored)
    tl.store(loss + row, tl.where(kept, value, 0.0), mask=stored)


@triton.jit(do_not_specialize=COUNTS)
def cross_entropy_backward_kernel(
    logits,
    target,
    class_weight,
    weight_sum,
    statistics,
    scale,
    grad,
    rows,
    base_rows,
    columns,
    ignore_index,
    HIT: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    tiles = tl.cdiv(columns, BLOCK_COLUMNS)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(0) % tiles * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    mask = column < columns
    stored = (row < rows)[:, None] & mask
    row = tl.minimum(row, rows - 1)
    base = row % base_rows
    shift = tl.load(statistics + 2 * base)
    kept, index, hit, mass = _row_terms(base, target, ignore_index, class_weight, weight_sum, HIT, SMOOTH, shift)
    upstream = tl.where(kept, tl.load(scale + row), 0.0)
    mass *= tl.load(statistics + 2 * base + 1)
    value = load_wide(logits + base[:, None] * columns + column, mask, -float("inf"))
    result = mass[:, None] * tl.exp(value - shift[:, None])
    if SMOOTH != 0:
        if class_weight is None:
            result -= SMOOTH
        else:
            result -= SMOOTH * tl.load(class_weight + column, mask=mask, other=0.0)
    result -= tl.where(column == index[:, None], hit[:, None], 0.0)
    result = tl.where(kept[:, None], upstream[:, None] * result, 0.0)
    tl.store(grad + row[:, None] * columns + column, result, mask=stored)


# Sums in float64, of terms divided by the sum of the very exponentials in the numerator, leave u - <p, u>
# accurate where one class has nearly all the probability.
@triton.jit(do_not_specialize=COUNTS)
def cross_entropy_hvp_kernel(
    logits,
    target,
    class_weight,
    weight_sum,
    statistics,
    scale,
    tangent,
    product,
    slope,
    rows,
    base_rows,
    columns,
    ignore_index,
    HIT: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    stored = row < rows
    row = tl.minimum(row, rows - 1)
    base = row % base_rows
    shift = tl.load(statistics + 2 * base)
    kept, index, hit, mass = _row_terms(base, target, ignore_index, class_weight, weight_sum, HIT, SMOOTH, shift)
    z = logits + base[:, None] * columns
    u = tangent + row[:, None] * columns
    numerator = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float64)
    denominator = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float64)
    spread = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), shift.dtype)
    for start in range(0, columns, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        mask = column < columns
        prob = tl.exp(load_wide(z + column, mask, -float("inf")) - shift[:, None])
        along = load_wide(u + column, mask)
        numerator += (prob * along).to(tl.float64)
        denominator += prob.to(tl.float64)
        if SMOOTH != 0 and slope is not None:
            if class_weight is not None:
                along *= tl.load(class_weight + column, mask=mask, other=0.0)
            spread += along
    mean = tl.sum(numerator, 1) / tl.sum(denominator, 1)
    if slope is not None:
        value = mass * mean - hit * load_wide(tangent + row * columns + index, stored)
        if SMOOTH != 0:
            value -= SMOOTH * tl.sum(spread, 1)
        tl.store(slope + row, tl.where(kept, value, 0.0), mask=stored)
    if product is not None:
        center = mean.to(shift.dtype)
        rest = (mean - center.to(tl.float64)).to(shift.dtype)
        factor = tl.load(scale + row) * mass * tl.load(statistics + 2 * base + 1)
        for start in range(0, columns, BLOCK_COLUMNS):
            column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
            mask = column < columns
            prob = tl.exp(load_wide(z + column, mask, -float("inf")) - shift[:, None])
            centered = (load_wide(u + column, mask) - center[:, None]) - rest[:, None]
            result = tl.where(kept[:, None], factor[:, None] * prob * centered, 0.0)
            tl.store(product + row[:, None] * columns + column, result, mask=stored[:, None] & mask)


def _options(rows: CrossEntropyRows) -> dict[str, float]:
    return {"HIT": 1.0 - rows.smoothing, "SMOOTH": rows.smoothing / rows.logits.shape[1]}


def _operands(rows: CrossEntropyRows) -> tuple[Tensor | None, ...]:
    weight = rows.class_weight
    return rows.logits, rows.target, weight, None if weight is None else weight.double().sum().to(weight.dtype)


def cross_entropy_forward(rows: CrossEntropyRows, statistics: Tensor, loss: Tensor) -> None:
    """Fill losses (R) and row statistics (R, 2); see `hvp_engine.kernels.cross_entropy`."""
    count, columns = rows.logits.shape
    tile = tile_of(count, columns)
    arguments = (*_operands(rows), statistics, loss, count, columns, rows.ignore_index)
    constants = dict(_options(rows), BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=tile.columns)
    launch(cross_entropy_forward_kernel, triton.cdiv(count, tile.rows), *arguments, **constants, num_warps=tile.warps)


def cross_entropy_backward(rows: CrossEntropyRows, statistics: Tensor, scale: Tensor, grad: Tensor) -> None:
    """Fill the gradient (K R, C), which may be the logits themselves."""
    base_rows, columns = rows.logits.shape
    tile = tile_of(rows.count, columns)
    arguments = (*_operands(rows), statistics, scale, grad, rows.count, base_rows, columns, rows.ignore_index)
    constants = dict(_options(rows), BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=tile.columns)
    programs = triton.cdiv(rows.count, tile.rows) * triton.cdiv(columns, tile.columns)
    launch(cross_entropy_backward_kernel, programs, *arguments, **constants, num_warps=tile.warps)


def cross_entropy_hvp(
    rows: CrossEntropyRows,
    statistics: Tensor,
    scale: Tensor,
    tangent: Tensor,
    product: Tensor | None,
    slope: Tensor | None,
) -> None:
    """Fill the products (K R, C), which may be the tangent itself, and slopes (K R), where wanted."""
    base_rows, columns = rows.logits.shape
    tile = tile_of(rows.count, columns, 2048)
    results = (statistics, scale, tangent, product, slope)
    arguments = (*_operands(rows), *results, rows.count, base_rows, columns, rows.ignore_index)
    constants = dict(_options(rows), BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=tile.columns)
    launch(cross_entropy_hvp_kernel, triton.cdiv(rows.count, tile.rows), *arguments, **constants, num_warps=tile.warps)


def resource_cases() -> list[ResourceCase]:
    """Declare the variants with the widest tiles: with weights and smoothing, and one with neither."""
    cases = []
    full = [(element, wide(element), 0.1) for element in ELEMENTS]
    for element, weight, smoothing in (("bf16", None, 0.0), *full):
        constants = {"HIT": 1.0 - smoothing, "SMOOTH": smoothing / 50000, "BLOCK_ROWS": 1}
        tiles = {**constants, "BLOCK_COLUMNS": 4096}
        smaller = {**constants, "BLOCK_COLUMNS": 2048}
        common = {"logits": element, "target": "i64", "class_weight weight_sum": weight, "statistics": wide(element)}
        backward_pointers = {**common, "scale": wide(element), "grad": element}
        hvp_pointers = {**common, "scale slope": wide(element), "tangent product": element}
        name = f"{element}, {'weights and smoothing' if smoothing else 'plain'}"
        cases += [
            variant(cross_entropy_forward_kernel, name, {**common, "loss": wide(element)}, tiles, num_warps=8),
            variant(cross_entropy_backward_kernel, name, backward_pointers, tiles, num_warps=8),
            variant(cross_entropy_hvp_kernel, name, hvp_pointers, smaller, num_warps=8),
        ]
    return cases
