"""Attention's derivatives in float32 by whole matrices of scores, whose products cuBLAS forms.

Tensor cores multiply no float32, and tiles of it leave few registers: there the library's products are several times as
fast as those of a fused kernel, and the matrices between them cost less than that gains. A strip of the rows of some
heads is computed at a time, so that the matrices never take more than MATRIX_BYTES.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hvp_engine.kernels.triton import attention_weights as weights
from hvp_engine.kernels.triton.attention_tiling import Strip
from hvp_engine.kernels.triton.launching import run

__all__ = ["attention_by_matrices"]


def attention_by_matrices(
    tensors: Sequence[Tensor | None], outputs: Sequence[Tensor | None], scale: float, causal: bool, strip: Strip
) -> None:
    """Compute the derivatives of <tangents, gradients>.

    Args:
        tensors: Query, key, value, mask, statistics, gradient of the output, and the tangents of query, key and value,
            as (batch, heads, rows, columns); None for what is absent.
        outputs: For query, key, value and the gradient of the output, alike; None for those not wanted.
        scale: Factor of the scores.
        causal: Whether query i sees only the keys up to i.
        strip: How much to compute at once.
    """
    query = tensors[0]
    assert query is not None
    for start in range(0, query.shape[0], strip.entries):
        entries = slice(start, start + strip.entries)
        given, wanted = ([None if t is None else t[entries] for t in group] for group in (tensors, outputs))
        _Entries(given, wanted, scale, causal).run(strip.rows)


class _Entries:
    """Some batch entries: operands as (batch x heads, rows, columns), and sums over queries for the keys' side."""

    def __init__(
        self, given: Sequence[Tensor | None], wanted: Sequence[Tensor | None], scale: float, causal: bool
    ) -> None:
        query, key, value, self.mask, statistics, gradient, *tangents = given
        assert query is not None and key is not None and value is not None and statistics is not None
        self.shape, self.scale, self.causal, self.wanted = query.shape, scale, causal, wanted
        self.heads, self.group = query.shape[1], query.shape[1] // key.shape[1]
        self.query, self.gradient, self.tangent_query = (self._flat(t) for t in (query, gradient, tangents[0]))
        self.key, self.value, self.tangent_key, self.tangent_value = (
            self._flat(t, self.group) for t in (key, value, *tangents[1:])
        )
        self.statistics = statistics.reshape(-1, *statistics.shape[2:])
        self.to_key, self.to_value = (
            None if out is None else torch.zeros_like(operand)  # type: ignore[arg-type]
            for out, operand in ((wanted[1], self.key), (wanted[2], self.value))
        )

    @staticmethod
    def _flat(tensor: Tensor | None, group: int = 1) -> Tensor | None:
        if tensor is None:
            return None
        heads = tensor if group == 1 else tensor.repeat_interleave(group, 1)
        return heads.reshape(-1, *heads.shape[2:])

    def run(self, rows: int) -> None:
        """Compute the outputs, `rows` query rows at a time."""
        queries = self.shape[2]
        for first in range(0, queries, rows):
            self._strip(first, min(queries, first + rows))
        for out, total in ((self.wanted[1], self.to_key), (self.wanted[2], self.to_value)):
            if out is not None and total is not None:
                grouped = total.view(out.shape[0], -1, self.group, *total.shape[1:])
                out.copy_(grouped.sum(2) if self.group > 1 else grouped[:, :, 0])

    def _strip(self, first: int, last: int) -> None:
        out_query, _, _, out_gradient = self.wanted
        query, gradient, tangent_query = (
            _part(t, first, last) for t in (self.query, self.gradient, self.tangent_query)
        )
        assert self.key is not None and query is not None
        seen = min(self.key.shape[1], last) if self.causal else self.key.shape[1]
        key, value, tangent_key, tangent_value = (
            _part(t, 0, seen) for t in (self.key, self.value, self.tangent_key, self.tangent_value)
        )
        to_key, to_value = _part(self.to_key, 0, seen), _part(self.to_value, 0, seen)

        wants_scores = out_query is not None or to_key is not None
        p = query @ key.mT  # type: ignore[union-attr]
        py = _across(_across(None, tangent_query, key), query, tangent_key)
        px = _across(None, gradient, value) if wants_scores and py is not None else None
        r = _across(None, gradient, tangent_value) if wants_scores else None
        self._weigh(p, py, px, r, first, keep=not wants_scores or r is not None, wants_scores=wants_scores)
        if wants_scores and r is None:
            r = p
        if out_query is not None:
            self._put(out_query, _times(_times(None, r, key), px, tangent_key), first, last)
        if to_key is not None and r is not None:
            to_key.baddbmm_(r.mT, query)
            if px is not None and tangent_query is not None:
                to_key.baddbmm_(px.mT, tangent_query)
        if to_value is not None and gradient is not None:
            to_value.baddbmm_((p if py is None else py).mT, gradient)
        if out_gradient is not None:
            self._put(out_gradient, _times(_times(None, py, value), p, tangent_value), first, last)

    def _weigh(
        self, p: Tensor, py: Tensor | None, px: Tensor | None, r: Tensor | None, first: int, *, keep: bool,
        wants_scores: bool,
    ) -> None:  # fmt: skip
        """Turn the products of operands into the factors of the results, in place."""
        matrices, rows, keys = p.shape
        if self.mask is not None:
            mask = self.mask[:, :, first : first + rows, :keys]
            scores = p.view(-1, self.heads, rows, keys).mul_(self.scale)
            if mask.dtype == torch.bool:
                scores.masked_fill_(~mask, -math.inf)
            else:
                scores.add_(mask)
        run(
            weights.attention_weights, (matrices * rows,), p,
            p, py, px, r, self.statistics, first, rows, self.shape[2], keys, self.scale / math.log(2), self.scale,
            CAUSAL=self.causal, NATURAL=self.mask is not None, KEEP_P=keep, WANT_R=wants_scores, BLOCK=weights.BLOCK,
            num_warps=weights.WARPS,
        )  # fmt: skip

    def _put(self, out: Tensor, total: Tensor | None, first: int, last: int) -> None:
        target = out[:, :, first:last]
        target.zero_() if total is None else target.copy_(total.view(target.shape))


def _part(tensor: Tensor | None, first: int, last: int) -> Tensor | None:
    return None if tensor is None else tensor[:, first:last]


def _across(total: Tensor | None, left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Return total + left right' where both are present."""
    return total if right is None else _times(total, left, right.mT)


def _times(total: Tensor | None, left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """Return total + left right where both are present; the total is overwritten."""
    if left is None or right is None:
        return total
    return torch.bmm(left, right) if total is None else total.baddbmm_(left, right)
