"""The Gauss-Newton part of a head's second derivative, and the rest of it, apart from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hvp_engine.ops.head.by_tokens import HeadInputs, Part, Tangents, Wanted, head_hvp

__all__ = ["head_part"]


def head_part(
    node: Any, scale: Tensor, tangents: Sequence[Tensor | None], wanted: Sequence[bool], part: Part
) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply by a part of the second derivative of `linear_cross_entropy`, a chunk of tokens at a time.

    Args:
        node: The loss's node in the graph, which saved the operands.
        scale: Upstream gradient (R) of the losses.
        tangents: Directions (K, ...) in hidden states (R, d), weights (V, d) and bias (V); None stands for zero.
        wanted: For which of the three the product is computed; the others are empty.
        part: Which part.

    Returns:
        The products (K, ...) with respect to hidden states, weights and bias.
    """
    hidden, weight, bias, statistics, logits, target, class_weight = node.saved_tensors
    kept = logits if logits.shape[0] > 0 else None
    head = HeadInputs(hidden, weight, bias, target, class_weight, node.options, kept)
    directions = [None if t is None else t.contiguous() for t in tangents]
    count = next(t.shape[0] for t in directions if t is not None)
    return head_hvp(head, statistics, scale, Tangents(*directions), count, Wanted(*wanted), part)[:3]
