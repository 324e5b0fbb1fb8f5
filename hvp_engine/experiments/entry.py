"""What an entry of the zoo is: a model, its loss, its data, its blocks, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.optimizers import Schedule, cosine
from hvp_engine.problem.batches import fingerprint
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.randomness import fixed_numbers

Family = Literal["cnn", "transformer", "mlp"]
Blocks = Mapping[str, Sequence[str]]

GRID = {"sgd": (1.0, 0.3, 0.1, 0.03, 0.01, 0.003), "adam": (3e-2, 1e-2, 3e-3, 1e-3, 3e-4)}  # of learning rates

NOT_WEIGHTS = ("position", "pos_embed", "wpe.", "cls_token", "token_type", "mask_token")  # no block of the papers


@dataclass(frozen=True)
class Recipe:
    """How an entry is trained.

    Attributes:
        steps: Steps of a training.
        batch: Samples or sequences of a step, all its batches together.
        clip: Largest norm of the whole gradient; None does not clip.
        microbatches: Batches whose mean gradient makes a step.
        schedule: Makes the schedule for a number of steps.
        options: Further arguments of each optimizer, by its name.
    """

    steps: int
    batch: int
    clip: float | None = None
    microbatches: int = 1
    schedule: Callable[[int], Schedule] = cosine
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def seeded(build: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Make a builder of a seed out of one that draws from the process's generators, which are left as they were."""

    def built(seed: int) -> nn.Module:
        with fixed_numbers(seed):
            return build()

    return built


def weights(model: nn.Module) -> dict[str, list[str]]:
    """Make a block of every parameter with two or more dimensions but position embeddings, class token and the like."""
    return {
        name.removesuffix(".weight"): [name]
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and not any(part in name for part in NOT_WEIGHTS)
    }


@dataclass(frozen=True)
class Entry:
    """A model of the zoo at one size.

    Attributes:
        name: Its name, also that of its files in the cache.
        family: What kind of network it is; an MLP-mixer counts as an MLP.
        build: Makes the model of a seed, at its initialisation.
        loss: As for :func:`hvp_engine.slq`.
        data: Makes the batches of a seed.
        rates: Grid of learning rates by name of the optimizer.
        recipe: How it is trained.
        choose: Picks the blocks of a model, as a mapping of names to patterns.
        sketch: Makes a Hessian batch's shapes on the meta device, and says how many such batches there are: for plans.
        looked_at: What :meth:`contents` found, by seed.
    """

    name: str
    family: Family
    build: Callable[[int], nn.Module]
    loss: Loss
    data: Callable[[int], Batches]
    recipe: Recipe
    rates: Mapping[str, Sequence[float]] = field(default_factory=lambda: GRID)
    choose: Callable[[nn.Module], Blocks] = weights
    sketch: Callable[[], tuple[Any, int]] | None = None
    looked_at: dict[int, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def blocks(self) -> Blocks:
        """Patterns of the blocks, for :func:`hvp_engine.slq`."""
        return self.choose(self.meta())

    def meta(self) -> nn.Module:
        """Make the model on the meta device, in eval mode: names and shapes without memory."""
        with torch.device("meta"):
            return self.build(0).eval()

    def contents(self, seed: int) -> str:
        """Digest what a training of a seed begins with, and on what it trains; both are looked at once.

        Of the data these are the source's digest, the first training batch, which shows what was drawn, masked and
        labelled, and the first one held out.
        """
        if seed not in self.looked_at:
            data = self.data(seed)
            seen = [next(iter(part), None) for part in (data.training(), data.held_out)]
            start = self.build(seed).state_dict()
            self.looked_at[seed] = fingerprint([list(start), list(start.values()), data.source.get("digest"), *seen])
        return self.looked_at[seed]

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied one counts once."""
        return sum(parameter.numel() for parameter in self.meta().parameters())
