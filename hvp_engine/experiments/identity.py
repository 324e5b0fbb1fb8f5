"""What a training is, beyond its name, so that the result of other data, start or recipe is not read for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.optimizers import Schedule
from hvp_engine.jobs.description import describe_function
from hvp_engine.system.json_files import checksum

_LOOKS = 8  # at a schedule, evenly spaced


def identity(entry: Entry, optimizer: str, rate: float, seed: int, device: str = "") -> str:
    """Digest all that decides a training's result.

    Args:
        entry: Model, data, loss and recipe.
        optimizer: By name.
        rate: Learning rate.
        seed: Of the start and of the order of data.
        device: Where it is trained, if that is not known from where the result is kept.
    """
    recipe = entry.recipe
    facts = {
        "optimizer": [optimizer, rate, list(recipe.options.get(optimizer, {}).items())],
        "recipe": [recipe.steps, recipe.batch, recipe.clip, recipe.microbatches],
        "schedule": factors(recipe.schedule, recipe.steps),
        "loss": describe_function(entry.loss),
        "start and data": entry.contents(seed),
        "seed and device": [seed, device],
    }
    return checksum(facts)


def factors(schedule: Callable[[int], Schedule], steps: int) -> list[float]:
    """Return by what a schedule multiplies the rate, at a few steps of a training."""
    scheduler = schedule(steps)(torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0))
    looks = [look * steps // _LOOKS for look in range(_LOOKS + 1)]
    return [float(factor(step)) for factor in scheduler.lr_lambdas for step in looks]
