"""Costs of the parts of a job."""

from __future__ import annotations

import pytest
import torch
from planned import small_gpt

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.ops.head.curvature import head_cost


def test_work_grows_with_tokens_steps_and_probes() -> None:
    model, data = small_gpt()
    blocks = {"first": ["layers.0.attn.wq.weight"]}

    def second(**options: object) -> float:
        plan = he.plan(model, he.losses.causal_lm, blocks, data=data, device="v100-16gb", **options)
        return plan.prediction.parts["second backwards"].flop

    base = second(steps=10, probes=2)
    assert second(steps=30, probes=2) == pytest.approx(3 * base)
    assert second(steps=10, probes=8) == pytest.approx(4 * base)
    assert second(steps=10, probes=2, batches=10) == pytest.approx(5 * base)
    assert second(steps=10, probes=2, tokens=20 * data[0].numel()) == pytest.approx(10 * base)


def test_head_curvature_is_planned_where_the_engine_forms_it_and_costed_by_its_own_formula() -> None:
    config = GPTConfig(vocabulary=4000, context=64, layers=4, heads=2, width=64)
    with torch.device("meta"):
        model, data = GPT(config), [torch.zeros(4, 64, dtype=torch.int64) for _ in range(2)]
    blocks = {"first": ["layers.0.attn.wq.weight"]}
    plan = he.plan(model, he.losses.causal_lm, blocks, data=data, device="a100-40gb", steps=50, probes=3)
    assert any("curvature is formed once: float32, 4 MiB in device memory" in note for note in plan.notes)
    cost = head_cost(4 * 63, 64, 4000, kept_logits=True)
    passes = 50 * 3 * len(data)
    other = next(a for a in plan.alternatives if a.name == "without head curvature")
    saved = passes * (cost.general_flop - cost.apply_flop) - len(data) * cost.form_flop
    assert saved > 0
    assert plan.flop == pytest.approx(other.flop - saved)
    assert plan.prediction.head.flop == pytest.approx(passes * cost.general_flop)
    few = he.plan(model, he.losses.causal_lm, blocks, data=data, device="a100-40gb", steps=1, probes=1)
    assert not any("curvature" in note for note in few.notes)
