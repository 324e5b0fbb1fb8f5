"""Optimizers and schedules by name, as the drivers compare them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.signum import Signum

Schedule = Callable[[Optimizer], LambdaLR]

OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = MappingProxyType(
    {
        "sgd": partial(torch.optim.SGD, momentum=0.9),
        "plain-sgd": torch.optim.SGD,
        "adam": torch.optim.AdamW,  # without weight decay, as the zoo has it at small size, it is Adam
        "rmsprop": torch.optim.RMSprop,
        "signum": partial(Signum, momentum=0.9),
        "signsgd": partial(Signum, momentum=0.0),
    }
)


def make_optimizer(name: str, model: nn.Module, rate: float, **options: Any) -> Optimizer:
    """Make an optimizer of all trainable parameters, without weight decay unless ``options`` say so.

    Args:
        name: One of :data:`OPTIMIZERS`.
        model: Whose parameters.
        rate: Learning rate.
        options: Further arguments, such as ``betas``.

    Raises:
        ConfigurationError: There is no optimizer of that name.
    """
    if name not in OPTIMIZERS:
        raise ConfigurationError(f"There is no optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}.")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return OPTIMIZERS[name](trained, lr=rate, **{"weight_decay": 0.0, **options})


def cosine(steps: int, warm_up: float = 0.05, last: float = 0.0) -> Schedule:
    """Make a schedule that rises linearly over a share ``warm_up`` of the steps, then falls along a cosine to ``last``.

    Args:
        steps: Steps of the training.
        warm_up: Share of the steps that the rise takes.
        last: Where the cosine ends, relative to the highest rate.
    """
    rise = round(warm_up * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        share = min(1.0, (step - rise) / max(1, steps - rise))
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * share))

    return partial(LambdaLR, lr_lambda=factor)


def constant() -> Schedule:
    """Make a schedule that leaves the rate as it is."""
    return partial(LambdaLR, lr_lambda=_one)


def linear(steps: int, warm_up: float = 0.0) -> Schedule:
    """Make a schedule that rises linearly over a share ``warm_up`` of the steps, then falls linearly to zero."""
    rise = round(warm_up * steps)

    def factor(step: int) -> float:
        return (step + 1) / (rise + 1) if step < rise else max(0.0, (steps - step) / max(1, steps - rise))

    return partial(LambdaLR, lr_lambda=factor)


def rising(steps: int, share: float = 0.1, first: float = 1.0 / 3.0) -> Schedule:
    """Make a schedule that rises linearly from ``first`` over a share of the steps, and stays: torch's ``LinearLR``.

    Args:
        steps: Steps of the training.
        share: Of the steps that the rise takes.
        first: Where it begins, relative to the rate.
    """
    rise = max(1, round(share * steps))

    def factor(step: int) -> float:
        return first + (1.0 - first) * min(1.0, step / rise)

    return partial(LambdaLR, lr_lambda=factor)


def _one(step: int) -> float:
    return 1.0
