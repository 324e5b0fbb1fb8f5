"""Masked-token batches, as BERT trains on them."""

from __future__ import annotations

import torch
from torch import Tensor

from hvp_engine.losses import IGNORE

_REPLACED, _RANDOM = 0.8, 0.1  # of the chosen tokens; the others stay as they are (Devlin et al. 2019)


def masked(
    tokens: Tensor, share: float, vocabulary: int, mask: int, generator: torch.Generator, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict: eight in ten of them become the mask, one in ten becomes any token, one in ten stays.

    Args:
        tokens: Token ids (n, length) int64.
        share: Share of the tokens to choose, each by a draw of its own; one token at least.
        vocabulary: Token ids below it are drawn where a token becomes any.
        mask: Id of the mask.
        generator: On the CPU.
        keep: Which tokens are never chosen (n, length) bool: padding and the like.

    Returns:
        Inputs and targets, (n, length) int64 each; targets of tokens that were not chosen are -100.
    """
    draws = torch.rand(tokens.shape, generator=generator)
    if keep is not None:
        draws = draws.masked_fill(keep, 2.0)
    chosen = draws < max(share, float(draws.min()) * 1.000001)
    fate = torch.rand(tokens.shape, generator=generator)
    random = torch.randint(0, vocabulary, tokens.shape, generator=generator)
    inputs = torch.where(chosen & (fate < _REPLACED), mask, tokens)
    inputs = torch.where(chosen & (fate >= _REPLACED) & (fate < _REPLACED + _RANDOM), random, inputs)
    return inputs, tokens.masked_fill(~chosen, IGNORE)
