"""Masked tokens: which are chosen, what becomes of them, what must be predicted."""

from __future__ import annotations

import pytest
import torch

from hvp_engine.experiments.data.masking import masked
from hvp_engine.losses import IGNORE

MASK = 50


def example(share: float, keep: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, MASK, (200, 64), generator=torch.Generator().manual_seed(0))
    return tokens, *masked(tokens, share, MASK, MASK, torch.Generator().manual_seed(1), keep)


def test_the_share_of_tokens_is_chosen_and_only_these_are_predicted() -> None:
    tokens, inputs, targets = example(0.15)
    chosen = targets != IGNORE
    assert float(chosen.float().mean()) == pytest.approx(0.15, abs=0.01)
    assert torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])


def test_of_ten_chosen_tokens_eight_are_masked_one_is_redrawn_and_one_stays() -> None:
    tokens, inputs, targets = example(0.5)
    chosen = targets != IGNORE
    masks = float((inputs[chosen] == MASK).float().mean())
    same = float((inputs[chosen] == tokens[chosen]).float().mean())
    assert masks == pytest.approx(0.8, abs=0.02)
    assert same == pytest.approx(0.1 + 0.1 / MASK, abs=0.02)


def test_kept_tokens_are_never_chosen() -> None:
    keep = torch.zeros(200, 64, dtype=torch.bool)
    keep[:, ::2] = True
    _, _, targets = example(0.9, keep)
    assert (targets[keep] == IGNORE).all()
    assert (targets[~keep] != IGNORE).float().mean() > 0.85


def test_one_token_is_chosen_however_small_the_share() -> None:
    _, _, targets = example(0.0)
    assert int((targets != IGNORE).sum()) >= 1
