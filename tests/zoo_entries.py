"""An entry of the zoo made of numbers drawn here, for tests that need no data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine import losses
from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.entry import Entry, Recipe, seeded
from hvp_engine.experiments.registry import Setting

SIDE, CLASSES = 6, 3


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(SIDE, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def samples(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return torch.randn(count, SIDE, generator=generator) + labels[:, None], labels


def batches(seed: int) -> Batches:
    def training() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield samples(16, generator)

    generator = torch.Generator().manual_seed(1000 + seed)
    fixed = [samples(16, generator), samples(16, generator)]
    return Batches(fixed, training, [samples(20, generator)], {"name": "drawn"})


def entry(steps: int = 20, build: Callable[[], nn.Module] = network, **changes: Any) -> Entry:
    recipe = Recipe(steps, 16, clip=1.0)
    given = {"rates": {"sgd": (0.3, 0.1), "adam": (0.03, 0.01)}, "recipe": recipe, **changes}
    return Entry("toy", "mlp", seeded(build), losses.classification, batches, **given)


def setting(out: Path, **changes: Any) -> Setting:
    return Setting(**{"size": "tiny", "seeds": 2, "out": out / "driver", **changes})
