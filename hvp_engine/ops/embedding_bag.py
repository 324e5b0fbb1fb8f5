"""Embedding bags from lookups and sums, differentiable any number of times; PyTorch's own has no second derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from hvp_engine.ops.embedding import embedding

__all__ = ["embedding_bag"]


def embedding_bag(
    tokens: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    mode: str,
    sample_weights: Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
) -> Tensor:
    """Reduce rows of a table bag by bag, as `torch.nn.functional.embedding_bag` does.

    Args:
        tokens: Row indices: (B, N) for bags of equal size, or (N,) with offsets.
        weight: Table (V, d).
        offsets: (B,) where each bag begins in flat tokens; one more entry with ``include_last_offset``.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        sample_weights: Factors of the rows, shaped like the tokens; for ``"sum"`` only.
        include_last_offset: Whether the last offset is the end of the last bag.
        padding_idx: Row that is left out of the bags.

    Returns:
        (B, d), zeros for empty bags.
    """
    bags, count = _bags(tokens, offsets, include_last_offset)
    tokens = tokens.reshape(-1)
    factors = None if sample_weights is None else sample_weights.reshape(-1)
    if padding_idx is not None:
        kept = tokens != padding_idx % weight.shape[0]
        tokens, bags, factors = tokens[kept], bags[kept], None if factors is None else factors[kept]
    rows = embedding(tokens, weight)
    if factors is not None:
        rows = rows * factors.unsqueeze(-1)
    if mode == "max":
        return _largest(rows, bags, count)
    sums = rows.new_zeros(count, rows.shape[1]).index_add(0, bags, rows)
    return sums if mode == "sum" else sums / _sizes(bags, count).clamp(min=1).unsqueeze(-1).to(rows.dtype)


def _bags(tokens: Tensor, offsets: Tensor | None, include_last_offset: bool) -> tuple[Tensor, int]:
    """Return the number of the bag of every token, and how many bags there are."""
    if offsets is None:
        count, size = tokens.shape
        return torch.arange(count, device=tokens.device).repeat_interleave(size), count
    starts = offsets[:-1] if include_last_offset else offsets
    positions = torch.arange(tokens.numel(), device=tokens.device)
    return torch.searchsorted(starts.to(positions.dtype), positions, right=True) - 1, starts.numel()


def _sizes(bags: Tensor, count: int) -> Tensor:
    return torch.bincount(bags, minlength=count)


def _largest(rows: Tensor, bags: Tensor, count: int) -> Tensor:
    """Take the first largest entry of every bag and column, to which the whole gradient goes."""
    sizes = _sizes(bags, count)
    longest = max([1, *sizes.tolist()])
    within = torch.arange(len(bags), device=bags.device) - (sizes.cumsum(0) - sizes)[bags]
    padded = rows.new_full((count, longest, rows.shape[1]), float("-inf")).index_put((bags, within), rows)
    largest = padded.max(dim=1).values
    return largest.masked_fill((sizes == 0).unsqueeze(-1), 0.0)
