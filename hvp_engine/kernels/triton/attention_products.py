"""What the Triton attention kernels multiply, per tile of scores, and how many are launched; it needs no Triton.

In the notation of `attention_derivatives`. Each pass over tiles forms the scores again: `attention_outputs`,
`attention_queries` and `attention_keys`; whole matrices (`attention_matrices`) are formed once.
"""

from __future__ import annotations

from collections.abc import Sequence

from hvp_engine.kernels.records import AttentionSizes, AttentionWork
from hvp_engine.kernels.triton.attention_tiling import Strip, Tiling, matrix_strip, tiling

__all__ = ["backward", "forward", "second"]


def forward(sizes: AttentionSizes) -> AttentionWork:
    """Count scores and output."""
    return AttentionWork(_programs("attention_forward", sizes, sizes.value_width), 1, 1)


def backward(wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
    """Count the second backward pass with the value as its own tangent."""
    return _derivatives((False, False, True), (*wanted, False), sizes)


def second(given: Sequence[bool], wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
    """Count the products of a second backward pass."""
    of_query, of_key, of_value, of_grad = wanted
    of_value = of_value and any(given[:2])  # else it is zero, which no kernel computes
    return _derivatives(given, (of_query, of_key, of_value, of_grad), sizes)


def _derivatives(given: Sequence[bool], wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
    """Count what `attention._derivatives` launches."""
    strip = matrix_strip(sizes.dtype, sizes.batch, sizes.heads, sizes.key_heads, sizes.queries, sizes.keys)
    return _by_tiles(given, wanted, sizes) if strip is None else _by_matrices(given, wanted, sizes, strip)


def _by_matrices(given: Sequence[bool], wanted: Sequence[bool], sizes: AttentionSizes, strip: Strip) -> AttentionWork:
    query, key, value = given
    of_query, of_key, of_value, of_grad = wanted
    first, scores = query or key, of_query or of_key
    narrow = 1 + query + key + of_query * (1 + first * key) + of_key * (1 + first * query)
    wide = scores * (first + value) + of_value + of_grad * (first + value)
    strips = -(-sizes.batch // strip.entries) * -(-sizes.key_heads // strip.key_heads) * -(-sizes.queries // strip.rows)
    at_once = query and key  # q' key' + query k'' is one product, twice as long
    return AttentionWork(narrow, wide, strips * (narrow + wide + 1 - at_once), strip.rows)


def _by_tiles(given: Sequence[bool], wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
    query, key, value = given
    of_query, of_key, of_value, of_grad = wanted
    first, scores = query or key, of_query or of_key
    again = 1 + query + key  # P and A of a tile
    of_values = first + value  # dP and B
    narrow = wide = launches = 0
    if first or scores or of_grad:
        narrow = _programs("attention_outputs", sizes, sizes.value_width) * again
        wide, launches = 2 * first + value, 1  # P value, (P A) value, P v'
    if of_query:
        programs = _programs("attention_queries", sizes, sizes.width)
        narrow += programs * again + (first or value) + key
        wide += programs * of_values
        launches += 1
    if of_key or of_value:
        programs = _programs("attention_keys", sizes, max(sizes.width, sizes.value_width))
        narrow += programs * again + of_key * ((first or value) + query)
        wide += programs * of_values + of_value
        launches += 1
    return AttentionWork(narrow, wide, launches)


def _programs(kernel: str, sizes: AttentionSizes, columns: int) -> int:
    """Return how many programs share the columns of a tile's results, each with scores of its own."""
    tile = _tile(kernel, sizes)
    assert tile is not None
    return -(-columns // tile.out)


def _tile(kernel: str, sizes: AttentionSizes) -> Tiling | None:
    return tiling(kernel, sizes.dtype, max(sizes.width, sizes.value_width), masked=sizes.masked, architecture=80)
