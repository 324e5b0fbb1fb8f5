"""The networks that products are timed on: what somebody tries first, and what comes after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from rivals import Task, language_task
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig


@dataclass(frozen=True)
class Network:
    """A network of the table.

    Attributes:
        make: Makes its task, with the same weights and data every time.
        sixteen: How many times faster sixteen vectors at once are to be than sixteen products of the fastest rival.
    """

    make: Callable[[], Task]
    sixteen: float


def _mlp(samples: int, *widths: int) -> Task:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.GELU()]
    model = nn.Sequential(*layers[:-1])
    return Task(model, torch.randn(samples, widths[0]), torch.randint(0, widths[-1], (samples,)))


def _cnn(samples: int, width: int, side: int) -> Task:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (side // 4) ** 2, 10),
    ]
    return Task(nn.Sequential(*layers), torch.randn(samples, 3, side, side), torch.randint(0, 10, (samples,)))


def _gpt(config: GPTConfig, sequences: int) -> Task:
    torch.manual_seed(0)
    model = GPT(config).eval()
    return language_task(model, torch.randint(0, config.vocabulary, (sequences, config.context)))


_SMALL_GPT = GPTConfig(vocabulary=256, context=64, layers=4, heads=4, width=64)
_LARGE_GPT = GPTConfig(vocabulary=256, context=256, layers=6, heads=6, width=384)
NETWORKS = {
    "MLP 2k": Network(partial(_mlp, 128, 20, 64, 10), 3.0),
    "MLP 670k": Network(partial(_mlp, 128, 784, 512, 512, 10), 3.0),
    "CNN 10k": Network(partial(_cnn, 64, 16, 16), 2.0),
    "GPT 200k (128 tokens)": Network(partial(_gpt, _SMALL_GPT, 2), 3.0),
    "GPT 10M (1,024 tokens)": Network(partial(_gpt, _LARGE_GPT, 4), 2.0),
}
TINY = {
    "tiny MLP": Network(partial(_mlp, 8, 5, 7, 3), 3.0),
    "tiny GPT": Network(partial(_gpt, GPTConfig(vocabulary=31, context=8, layers=1, heads=2, width=16), 2), 3.0),
}


def engine_job(task: Task) -> dict[str, Any]:
    """Return model, loss and data of a task as a user of the engine writes them."""
    if task.transformer:
        return {"model": task.model.model, "loss": he.losses.causal_lm, "data": [task.inputs]}
    return {"model": task.model, "loss": he.losses.classification, "data": [(task.inputs, task.targets)]}


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return the relative difference of two vectors."""
    return float((found.detach() - wanted).norm() / wanted.norm())
