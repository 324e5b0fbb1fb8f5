"""A training of one's own that takes seconds' fractions, with all that measuring it could disturb."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hvp_engine as he
from hvp_engine.integrations import SpectrumLogger

STEPS = 6
OPTIONS: dict[str, Any] = {"every": 2, "steps": 6, "probes": 1}
LOSS = he.losses.classification


def network() -> nn.Module:
    """BatchNorm and dropout in train mode, and a part that is frozen and held in eval mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.LayerNorm(8), nn.Linear(8, 3)
    )
    model[4].eval().requires_grad_(False)
    return model


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


PROBE = [samples(12, seed=100), samples(5, seed=101)]


def stepped(model: nn.Module, rate: float = 0.1) -> torch.optim.Adam:
    """Take one step, so that the optimiser has a state."""
    optimizer = torch.optim.Adam(model.parameters(), rate, betas=(0.8, 0.99))
    total, weight = LOSS(model, PROBE[0])
    (total / weight).backward()
    optimizer.step()
    return optimizer


def bf16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@dataclass
class Course:
    """What a training went through, and where it ended."""

    losses: list[float]
    tensors: list[Tensor]
    drawn: list[float]
    logger: SpectrumLogger | None

    def same(self, other: Course) -> bool:
        return (
            self.losses == other.losses
            and self.drawn == other.drawn
            and all(torch.equal(one, two) for one, two in zip(self.tensors, other.tensors, strict=True))
        )


def train(
    measured: dict[str, Any] | None,
    *,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    accumulated: int = 1,
    rate: float = 1e-2,
    steps: int = STEPS,
) -> Course:
    """Train by Adam, with a logger of some options or without one; it is called inside of the arithmetic."""
    model = wrap(network())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    logger = None if measured is None else SpectrumLogger(model, LOSS, PROBE, **measured)
    random.seed(0), np.random.seed(0), torch.manual_seed(1)
    found = []
    for step in range(steps):
        with arithmetic():
            for part in range(accumulated):
                inputs, targets = samples(8, seed=10 * step + part)
                noise = torch.randn_like(inputs) * random.random() * np.random.rand()
                loss = F.cross_entropy(model(inputs + noise), targets)
                loss.backward()
                found.append(float(loss.detach()))
                if logger is not None:
                    logger.step(step, optimizer)  # amid the step: gradients are there
            optimizer.step()
            optimizer.zero_grad()
    state = [t for s in optimizer.state.values() for t in s.values()]
    tensors = [*model.state_dict().values(), *state]
    return Course(found, tensors, [random.random(), float(np.random.rand()), float(torch.rand(()))], logger)
