"""Plans of drivers at the papers' sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hvp_engine as he
from hvp_engine.experiments import paper_plan
from hvp_engine.experiments.models.gpt import GPT, GPTConfig


def test_a_planned_spectrum_is_the_planners_with_hours_on_both_devices() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))
    data = [(torch.zeros(6, 8), torch.zeros(6).long())]
    found = paper_plan.planned_slq(
        "spectra", model, he.losses.classification, "parameter", data, steps=7, probes=3, batches=5, runs=4
    )
    for name, device in paper_plan.DEVICES.items():
        one = he.plan(
            model, he.losses.classification, "parameter", data=data, device=device, steps=7, probes=3, batches=5
        )
        assert found.hours[name] == pytest.approx(4 * one.seconds / 3600.0)
    assert found.flop == pytest.approx(4 * one.flop) and found.bytes >= one.peak > 0


def test_training_takes_six_flop_per_parameter_and_token() -> None:
    found = paper_plan.planned_training("GPT-2", 124_000_000, 1e9)
    assert found.flop == pytest.approx(7.44e17) and found.bytes == 124_000_000 * 16
    assert found.hours["A100"] == pytest.approx(7.44e17 / (0.4 * 312e12) / 3600.0)
    assert found.hours["H100"] < found.hours["A100"]


def test_a_part_repeated_takes_as_many_times_the_work_and_no_more_memory() -> None:
    one = paper_plan.planned_training("GPT-2", 124_000_000, 1e9)
    three = one.times(3)
    assert three.what == "3 times GPT-2" and one.times(3, "all").what == "all"
    assert (three.flop, three.bytes, three.hours["H100"]) == (3 * one.flop, one.bytes, 3 * one.hours["H100"])


def test_counted_training_counts_a_convolution_once_per_place() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    batch = (torch.randn(5, 3, 6, 6), torch.randint(0, 4, (5,)))
    with FlopCounterMode(display=False) as counter:
        total, weight = he.losses.classification(model, batch)
        (total / weight).backward()
    found = paper_plan.counted_training("CNN", model, he.losses.classification, batch, passes=10)
    assert found.flop == 10 * counter.get_total_flops()
    assert found.bytes > 16 * sum(p.numel() for p in model.parameters())


def test_both_ways_to_plan_a_transformer_agree() -> None:
    config = GPTConfig(vocabulary=512, context=32, layers=4, heads=4, width=128)
    with torch.device("meta"):
        model = GPT(config)
        tokens = torch.empty(8, 32, dtype=torch.int64)
    counted = paper_plan.counted_training("GPT", model, he.losses.causal_lm, tokens, passes=1)
    parameters = sum(p.numel() for p in model.parameters()) - config.context * config.width  # positions: a sum
    assert counted.flop == pytest.approx(paper_plan.planned_training("GPT", parameters, 8 * 32).flop, rel=0.1)
