"""Predicted against measured time of whole jobs on this machine: the planner must be right within a factor of 1.5."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

import hvp_engine as he
from hvp_engine.experiments import demo
from hvp_engine.experiments.data.corpus import standard_library
from hvp_engine.experiments.models.gpt import GPT, GPTConfig, paper_blocks

THREADS = 2


def demo_job() -> tuple[nn.Module, dict[str, Any]]:
    """Return the demo's SLQ at fixed steps and probes, so that its time does not depend on the training."""
    return GPT(demo.CONFIG).eval(), {**demo.job(standard_library()), "tolerance": None, "steps": 40, "probes": 2}


def mlp_job() -> tuple[nn.Module, dict[str, Any]]:
    """Return an MLP of MNIST's size, every tensor and the full Hessian."""
    model = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 10))
    data = [(torch.randn(256, 784), torch.randint(0, 10, (256,))) for _ in range(4)]
    blocks = {name: [name] for name, _ in model.named_parameters()}
    asked = {"loss": he.losses.classification, "blocks": {**blocks, "full": ["*"]}, "data": data}
    return model, {**asked, "steps": 60, "probes": 4}


def cnn_job() -> tuple[nn.Module, dict[str, Any]]:
    """Return a convolutional network on 32 x 32 images, every weight."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.GELU(), nn.AvgPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10)).eval()
    data = [(torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))) for _ in range(2)]
    blocks = {name: [name] for name, p in model.named_parameters() if p.dim() > 1}
    return model, {"loss": he.losses.classification, "blocks": blocks, "data": data, "steps": 20, "probes": 4}


def gpt_job() -> tuple[nn.Module, dict[str, Any]]:
    """Return a GPT with more vocabulary and longer sequences than the demo's, the paper's blocks of its two layers."""
    config = GPTConfig(vocabulary=2048, context=256, layers=2, heads=4, width=192)
    data = [torch.randint(0, 2048, (4, 256)) for _ in range(2)]
    asked = {"loss": he.losses.causal_lm, "blocks": paper_blocks(config), "data": data}
    return GPT(config).eval(), {**asked, "steps": 10, "probes": 2}


JOBS = {"demo": demo_job, "mlp": mlp_job, "cnn": cnn_job, "gpt": gpt_job}


@pytest.mark.parametrize("name", sorted(JOBS))
def test_prediction_of_a_job_on_this_cpu(benchmark, name):
    """Record both times; the plan itself takes seconds."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model, asked = JOBS[name]()
    began = time.perf_counter()
    plan = he.plan(model, device="cpu", **asked)
    planning = time.perf_counter() - began
    began = time.perf_counter()
    benchmark.pedantic(he.slq, (model,), {**asked, "progress": False}, rounds=1)
    measured = time.perf_counter() - began
    benchmark.extra_info.update(
        size=name,
        predicted_s=plan.seconds,
        measured_s=measured,
        predicted_over_measured=plan.seconds / measured,
        planning_s=planning,
    )
    assert 1 / 1.5 < plan.seconds / measured < 1.5
