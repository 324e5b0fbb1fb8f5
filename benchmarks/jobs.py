"""The jobs that benchmarks run: a GPT, its paper blocks, random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine import losses
from hvp_engine.experiments.models.gpt import GPT, GPTConfig, paper_blocks

SIZES = {
    "tiny": (GPTConfig(vocabulary=97, context=16, layers=2, heads=2, width=32), 2),
    "laptop": (GPTConfig(vocabulary=256, context=64, layers=4, heads=4, width=64), 16),
    "medium": (GPTConfig(vocabulary=50_304, context=256, layers=6, heads=6, width=384), 4),
    "gpt2": (GPTConfig(vocabulary=50_304, context=1024, layers=12, heads=12, width=768), 8),
}
CPU = torch.device("cpu")


@dataclass
class Job:
    """A model, its data and one parameter name per block."""

    model: nn.Module
    data: list[Tensor]
    blocks: dict[str, str]

    @property
    def patterns(self) -> dict[str, list[str]]:
        """The blocks as the engine takes them."""
        return {name: [target] for name, target in self.blocks.items()}

    def vectors(self) -> dict[str, Tensor]:
        """One unit vector (numel,) per block, the same on every device."""
        parameters = dict(self.model.named_parameters())
        generator = torch.Generator().manual_seed(0)
        drawn = {n: torch.randn(parameters[t].numel(), generator=generator) for n, t in self.blocks.items()}
        return {name: (vector / vector.norm()).to(self.data[0].device) for name, vector in drawn.items()}


def mean_loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean next-token cross-entropy: the loss of the baselines."""
    total, weight = losses.causal_lm(model, batch)
    return total / weight


def gpt_job(size: str, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> Job:
    """Return the job of a named size: random weights, random tokens, one batch."""
    config, batch = SIZES[size]
    torch.manual_seed(0)
    model = GPT(config).eval()
    tokens = torch.randint(0, config.vocabulary, (batch, config.context))
    blocks = {name: patterns[0] for name, patterns in paper_blocks(config).items()}
    return Job(model.to(device, dtype), [tokens.to(device)], blocks)
