"""What the passes of csrc/cpu/attention/*.cpp multiply, per tile of scores: they keep a block's strips of tiles."""

from __future__ import annotations

from collections.abc import Sequence

from hvp_engine.kernels.records import AttentionSizes, AttentionWork

__all__ = ["backward", "forward", "second"]


def forward(sizes: AttentionSizes) -> AttentionWork:
    """Count scores and output."""
    return AttentionWork(1, 1, 1)


def backward(wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
    """Count the scores again, the probabilities' gradient, and the gradients; the query's goes with the key's."""
    query, key, value = wanted
    scores = query or key
    return AttentionWork(1 + scores + key, scores + value, 1)


def second(given: Sequence[bool], wanted: Sequence[bool], sizes: AttentionSizes) -> AttentionWork:
    """Count the products in the notation of second.cpp; twelve when everything is given and wanted."""
    query, key, value = given
    of_query, of_key, of_value, of_grad = wanted
    first, scores = query or key, of_query or of_key
    narrow = 1 + query + key  # P, q' key', query k'
    narrow += of_query * (1 + key) + of_key * (1 + query)  # R key, (P X) k', R' query, (P X)' q'
    wide = scores * (first + value)  # dO value', dO v''
    wide += of_grad * (first + value) + of_value * first  # (P Y) value, P v', (P Y)' dO
    return AttentionWork(narrow, wide, 1)
