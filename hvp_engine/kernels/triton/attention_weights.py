"""What attention's derivatives do between their products when the matrices of scores are formed whole.

The notation is that of attention_derivatives.py. A program owns one row, which it reads several times; all but the
first read find it in the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hvp_engine.kernels.triton.resource_case import ResourceCase

BLOCK, WARPS = 1024, 4


@triton.jit
def _parts(scores, slopes, gradients, tangents, column, end, factor, scale, largest, NATURAL: tl.constexpr):
    """Load a stretch of a row: unnormalised weights, A, dP and B; zeros for what is absent."""
    inside = column < end
    s = tl.load(scores + column, mask=inside, other=float("-inf"))
    weight = tl.exp(s - largest) if NATURAL else tl.exp2(s * factor - largest)
    weight = tl.where(inside, weight, 0.0)
    a = weight * 0.0
    dp = weight * 0.0
    b = weight * 0.0
    if slopes is not None:
        a = tl.load(slopes + column, mask=inside, other=0.0) * scale
    if gradients is not None:
        dp = tl.load(gradients + column, mask=inside, other=0.0)
    if tangents is not None:
        b = tl.load(tangents + column, mask=inside, other=0.0)
    return weight, a, dp, b


@triton.jit
def attention_weights(
    scores, slopes, gradients, tangents, statistics, first, rows, queries, keys, factor, scale,
    CAUSAL: tl.constexpr, NATURAL: tl.constexpr, KEEP_P: tl.constexpr, WANT_R: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Replace query key', A / scale, dP and B (matrices, rows, keys) by what the products to come need.

    P Y replaces A; scale P X replaces dP. Scale R replaces B, or the scores where there is no B. P replaces the scores
    if KEEP_P. What is absent is None. With a mask the scores are NATURAL, as `masked` returns them; without they are
    plain products. `statistics` (matrices, queries, 2) hold the largest of each row.
    """
    program = tl.program_id(0).to(tl.int64)
    row = first + program % rows
    at = program * keys
    s_row = scores + at
    a_row = slopes + at if slopes is not None else None
    d_row = gradients + at if gradients is not None else None
    b_row = tangents + at if tangents is not None else None
    largest = tl.load(statistics + (program // rows * queries + row) * 2)
    end = tl.minimum(keys, row + 1) if CAUSAL else keys

    total, sum_a, sum_d, sum_b = 0.0, 0.0, 0.0, 0.0
    for start in range(0, keys, BLOCK):
        column = start + tl.arange(0, BLOCK)
        weight, a, dp, b = _parts(s_row, a_row, d_row, b_row, column, end, factor, scale, largest, NATURAL)
        total += tl.sum(weight)
        sum_a += tl.sum(weight * a)
        sum_d += tl.sum(weight * dp)
        sum_b += tl.sum(weight * b)
    unit = tl.where(total > 0.0, 1.0 / tl.where(total > 0.0, total, 1.0), 0.0)  # a row that sees no key gives zeros
    mean_y, mean_x = sum_a * unit, sum_d * unit
    sum_z = sum_b
    if slopes is not None and gradients is not None:
        for start in range(0, keys, BLOCK):
            column = start + tl.arange(0, BLOCK)
            weight, a, dp, b = _parts(s_row, a_row, d_row, b_row, column, end, factor, scale, largest, NATURAL)
            sum_z += tl.sum(weight * (dp - mean_x) * (a - mean_y))
    mean_z = sum_z * unit

    for start in range(0, keys, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < keys
        weight, a, dp, b = _parts(s_row, a_row, d_row, b_row, column, end, factor, scale, largest, NATURAL)
        p = weight * unit
        y = a - mean_y
        x = dp - mean_x
        z = b - mean_z
        if slopes is not None and gradients is not None:
            z += x * y
        if WANT_R:
            r = scale * p * z
            if tangents is not None:
                tl.store(b_row + column, r, mask=inside)
            else:
                tl.store(s_row + column, r, mask=inside)
        if KEEP_P:
            tl.store(s_row + column, p, mask=inside)
        if slopes is not None:
            tl.store(a_row + column, p * y, mask=inside)
        if gradients is not None:
            tl.store(d_row + column, scale * p * x, mask=inside)


def resource_cases() -> list[ResourceCase]:
    """List the variants to compile ahead of time."""
    signature = {
        **dict.fromkeys(("scores", "slopes", "gradients", "tangents", "statistics"), "*fp32"),
        **dict.fromkeys(("first", "rows", "queries", "keys"), "i32"),
        **dict.fromkeys(("factor", "scale"), "fp32"),
    }
    constants = {"CAUSAL": True, "NATURAL": False, "KEEP_P": True, "WANT_R": True, "BLOCK": BLOCK}
    masked = {**constants, "CAUSAL": False, "NATURAL": True}
    return [
        ResourceCase(attention_weights, "causal", signature, constants, WARPS),
        ResourceCase(attention_weights, "mask", signature, masked, WARPS),
    ]
