"""How networks are fine-tuned: steps, batch, clipping and schedule, with what ``--set`` overrides of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.entry import Recipe
from hvp_engine.experiments.optimizers import Schedule, constant, cosine, linear, rising
from hvp_engine.experiments.registry import Setting

OPTIMIZERS = ("adam", "rmsprop", "plain-sgd", "sgd", "signsgd", "signum")


def fine_tuning(setting: Setting, steps: int, batch: int = 16, schedule: str = "linear") -> Recipe:
    """Make a recipe, gradients clipped at 1; ``--set`` overrides each argument, and clip=0 does not clip.

    Args:
        setting: Options.
        steps: Of a training.
        batch: Samples of a step.
        schedule: ``"linear"`` decay, ``"warmup"`` before it, ``"cosine"`` decay, ``"constant"`` or ``"rising"``.

    Raises:
        ConfigurationError: There is no such schedule.
    """
    schedules: Mapping[str, Callable[[int], Schedule]] = {
        "linear": linear,
        "constant": _constant,
        "cosine": partial(cosine, warm_up=0.0),
        "warmup": partial(linear, warm_up=0.1),
        "rising": rising,
    }
    name = setting.option("schedule", schedule)
    if name not in schedules:
        raise ConfigurationError(f"There is no schedule {name!r}; choose one of {', '.join(schedules)}.")
    adam = {"eps": setting.option("epsilon", 1e-8)}
    return Recipe(
        setting.option("steps", steps),
        setting.option("batch", batch),
        setting.option("clip", 1.0) or None,
        schedule=schedules[name],
        options={"adam": adam},
    )


def _constant(steps: int) -> Schedule:
    return constant()
