"""Which residual projections of the GPT are damped at initialisation."""

from __future__ import annotations

import math

import pytest
import torch

from hvp_engine.experiments.models.gpt import GPT, GPTConfig

SIZES = {"vocabulary": 50, "context": 16, "layers": 4, "heads": 2, "width": 64}


def deviation(model: GPT, projection: str) -> float:
    weights = [p.flatten() for name, p in model.named_parameters() if name.endswith(f"{projection}.weight")]
    return float(torch.cat(weights).detach().std())


def test_the_papers_option_leaves_the_attentions_output_undamped() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, damp_wo=False))
    assert deviation(model, "wo") == pytest.approx(0.02, rel=0.03)
    assert deviation(model, "c_proj") == pytest.approx(0.02 / math.sqrt(8), rel=0.03)


def test_by_default_both_are_damped_with_the_bits_of_gpt2s_rule() -> None:
    torch.manual_seed(7)
    model = GPT(GPTConfig(**SIZES))
    torch.manual_seed(7)
    drawn = GPT(GPTConfig(**SIZES, damp_wo=False))
    assert deviation(model, "wo") == pytest.approx(0.02 / math.sqrt(8), rel=0.03)
    for (name, ours), other in zip(model.named_parameters(), drawn.parameters(), strict=True):
        if "wo" in name:  # the same normal numbers, scaled
            torch.testing.assert_close(ours, other / math.sqrt(8), rtol=1e-6, atol=0)
        else:
            assert torch.equal(ours, other)
