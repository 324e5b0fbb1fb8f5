"""The derivatives of a fused head's loss by its parts: the loss in the logits, and the logits in states and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hvp_engine.ops.head.by_tokens import HeadInputs, Part, Tangents, Wanted, head_backward, head_hvp

__all__ = ["HeadParts"]


class HeadParts:
    """Derivatives of `linear_cross_entropy` that are taken from its node in a graph, a chunk of tokens at a time."""

    @torch.no_grad()
    def slopes(self, node: Any, scale: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
        """Compute gradients of the losses without a graph.

        Args:
            node: The loss's node, which saved the operands.
            scale: Upstream gradient (R) of the losses.
            wanted: Which gradients are computed, of hidden states, weights and bias; the others are empty.

        Returns:
            Gradients with respect to hidden states (R, d), weights (V, d) and bias (V).
        """
        head, statistics = _operands(node)
        return head_backward(head, statistics, scale, Wanted(*wanted))

    @torch.no_grad()
    def product(
        self, node: Any, scale: Tensor, tangents: Sequence[Tensor | None], wanted: Sequence[bool], part: Part
    ) -> tuple[Tensor, ...]:
        """Multiply by a part of the losses' second derivative.

        Args:
            node: The loss's node, which saved the operands.
            scale: Upstream gradient (R) of the losses.
            tangents: Directions (K, ...) in hidden states, weights and bias; None stands for zero.
            wanted: For which of the three the product is computed; the others are empty.
            part: Which part.

        Returns:
            The products (K, ...) with respect to hidden states, weights and bias.
        """
        head, statistics = _operands(node)
        directions = [None if t is None else t.contiguous() for t in tangents]
        count = next(t.shape[0] for t in directions if t is not None)
        return head_hvp(head, statistics, scale, Tangents(*directions), count, Wanted(*wanted), part)[:3]


def _operands(node: Any) -> tuple[HeadInputs, Tensor]:
    hidden, weight, bias, statistics, logits, target, class_weight = node.saved_tensors
    kept = logits if logits.shape[0] > 0 else None
    return HeadInputs(hidden, weight, bias, target, class_weight, node.options, kept), statistics
