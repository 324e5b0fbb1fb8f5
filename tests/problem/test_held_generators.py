"""A generator that a model or a loss keeps for itself is found wherever it is, so that rare draws are seen."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from refusals import mean_loss
from torch import Tensor, nn
from weighed import EQUAL

import hvp_engine as he
from hvp_engine.errors import NonDeterministicError
from hvp_engine.problem.held_generators import held_sources

module_generator = np.random.default_rng(0)


class Dropping:
    """Drops a layer one time in a million."""

    def __init__(self, generator: Any) -> None:
        self.settings = {"generators": [generator]}

    def __call__(self, x: Tensor) -> Tensor:
        return x * (self.settings["generators"][0].random() > 1e-6)


def drop(x: Tensor) -> Tensor:
    return x * (module_generator.random() > 1e-6)


def in_a_closure(generator: Any) -> Callable[[Tensor], Tensor]:
    def layer(x: Tensor, *, by: Any = None) -> Tensor:
        return x * (generator.random() > 1e-6)

    return layer


class Model(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.layer = nn.Linear(4, 3), layer

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(self.linear(x))
        return logits


@pytest.mark.parametrize(
    "layer",
    [Dropping(random.Random(0)), Dropping(np.random.default_rng(0)), drop, in_a_closure(random.Random(0))],
    ids=["object", "numpy", "global of a helper", "closure"],
)
@pytest.mark.parametrize("of_the_loss", [False, True])
def test_a_rare_draw_from_a_generator_kept_out_of_sight_is_refused(layer: Any, *, of_the_loss: bool) -> None:
    model = Model(torch.tanh if of_the_loss else layer)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return mean_loss(model, (layer(batch[0]) if of_the_loss else batch[0], batch[1]))

    with pytest.raises(NonDeterministicError, match="random"):
        he.hvp(model, loss, {"full": torch.ones(1, 15)}, data=EQUAL)


def test_the_search_ends_where_things_refer_to_each_other_or_are_many() -> None:
    circle: dict[str, Any] = {}
    circle["itself"] = circle
    model = Model(circle)
    model.many = [[random.Random(i)] for i in range(100_000)]
    assert not held_sources(model, mean_loss)
