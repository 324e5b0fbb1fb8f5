"""What the Triton attention kernels multiply, per tile of scores, and how many are launched; it needs no Triton.

In the notation of `attention_derivatives`: each of its three kernels forms S, A, dP and B again.
"""

from __future__ import annotations

from collections.abc import Sequence

from hvp_engine.kernels.records import AttentionSizes, AttentionWork
from hvp_engine.kernels.triton.attention_tiling import tiling

__all__ = ["backward", "forward", "second"]


def forward(sizes: AttentionSizes) -> AttentionWork:
    """Count scores and output."""
    return AttentionWork(_programs("attention_forward", sizes), 1, 1)


def backward(wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
    """Count the second backward pass with the value as its own tangent; nine when everything is wanted."""
    return _derivatives((False, False, True), (*wanted, False), sizes)


def second(given: Sequence[bool], wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
    """Count the products; twenty-two when everything is given and wanted."""
    of_query, of_key, of_value, of_grad = wanted
    of_value = of_value and any(given[:2])  # else it is zero, which no kernel computes
    return _derivatives(given, (of_query, of_key, of_value, of_grad), sizes)


def _derivatives(given: Sequence[bool], wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
    """Count what `attention._derivatives` launches."""
    query, key, value = given
    of_query, of_key, of_value, of_grad = wanted
    first = query or key
    scores = of_query or of_key
    narrow = wide = launches = 0
    if first or scores:  # the means
        narrow, wide, launches = 1 + query + key, scores * (first + value), 1
    if of_query or of_grad:
        again = _programs("attention_queries", sizes)
        narrow += again * (1 + query + key) + of_query * ((first or value) + key)  # R key, (P X) k'
        wide += again * of_query * (first + value) + of_grad * (first + value)  # (P Y) value, P v'
        launches += 1
    if of_key or of_value:
        again = _programs("attention_keys", sizes)
        narrow += again * (1 + query + key) + of_key * ((first or value) + query)  # R' query, (P X)' q'
        wide += again * (first + value) + of_value  # (P Y)' dO, or P' dO
        launches += 1
    return AttentionWork(narrow, wide, launches)


def _programs(kernel: str, sizes: AttentionSizes) -> int:
    """Return how many programs share the columns of a tile's results, each with scores of its own."""
    widest = max(sizes.width, sizes.value_width)
    return -(-widest // tiling(kernel, sizes.dtype, widest, masked=sizes.masked).out)
