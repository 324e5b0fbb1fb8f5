"""The published code's counts, and the sizes of the paper's job."""

from __future__ import annotations

import pytest
import torch
from planned import small_gpt
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hvp_engine as he
from hvp_engine.blocks import resolve
from hvp_engine.experiments import gpt2_paper
from hvp_engine.experiments.published import published_counts
from hvp_engine.planning.counting import meta_copy


def test_plain_operations_agree_with_the_flop_counter_of_torch() -> None:
    model, data = small_gpt()
    found = published_counts(
        meta_copy(model, torch.float32), he.losses.causal_lm, data[0].to("meta"), resolve(model, {"all": ["*"]})
    )
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            total, _ = he.losses.causal_lm(model, data[0])
            gradients = torch.autograd.grad(total, parameters, create_graph=True)
        assert found.gradient.flop == counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(gradients, parameters, [torch.ones_like(p) for p in parameters])
        assert found.blocks["all"].flop == counter.get_total_flops()
    assert found.separate == {"all"} and found.flop == found.gradient.flop + found.blocks["all"].flop


def test_the_papers_job_has_the_papers_sizes() -> None:
    model, _, data, blocks = gpt2_paper.job()
    partition = resolve(model, blocks)
    assert sum(p.numel() for p in model.parameters()) == partition.blocks["full"].numel == 124_373_760
    assert sum(b.numel for name, b in partition.blocks.items() if name != "full") == 66_945_024
    assert len(blocks) == 26 and sum(batch.numel() for batch in data) == 491_520
    few = resolve(model, {"11.c_proj": blocks["11.c_proj"]})
    found = published_counts(model, he.losses.causal_lm, data[0], few)
    assert found.gradient.flop == pytest.approx(7.001e12, rel=1e-3)
    assert found.blocks["11.c_proj"].flop == pytest.approx(6.011e12, rel=1e-3)
    assert found.pruned["11.c_proj"].flop == pytest.approx(1.343e12, rel=1e-3)
