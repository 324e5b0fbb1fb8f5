"""A generator that a model or a loss keeps for itself is found wherever it is, so that rare draws are seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from refusals import mean_loss
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler
from weighed import EQUAL

import hvp_engine as he
from hvp_engine.errors import NonDeterministicError
from hvp_engine.problem.generators import source_of
from hvp_engine.problem.held_generators import held_sources
from hvp_engine.problem.randomness import UndisturbedData

module_generator = np.random.default_rng(0)


class Dropping:
    """Drops a layer one time in a million."""

    def __init__(self, generator: Any) -> None:
        self.settings = {"generators": [generator]}

    def __call__(self, x: Tensor) -> Tensor:
        return x * (self.settings["generators"][0].uniform(0, 1) > 1e-6)


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


class Augmented(Dataset[Tensor]):
    """Draws for every sample, which it drops one time in a million."""

    def __init__(self, generator: Any) -> None:
        self.transform = Dropping(generator)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, place: int) -> Tensor:
        return self.transform(torch.full((4,), float(place)))


def loaders(generator: torch.Generator) -> dict[str, Iterable[Any]]:
    inputs = torch.arange(24.0).reshape(6, 4)
    shuffling = BatchSampler(RandomSampler(range(6), generator=generator), 6, drop_last=False)
    return {
        "loader": DataLoader(inputs, batch_size=3, generator=generator),
        "sampler": DataLoader(inputs, batch_size=1, sampler=OneOrder(generator)),
        "batch sampler": DataLoader(inputs, batch_sampler=shuffling),
    }


class OneOrder(Sampler[int]):
    """Draws, and samples in the same order all the same."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        torch.rand(3, generator=self.generator)
        return iter(range(6))


@pytest.mark.parametrize("kind", ["loader", "sampler", "batch sampler"])
def test_reading_data_leaves_a_generator_that_a_training_shares_with_it(kind: str) -> None:
    generator = torch.Generator().manual_seed(5)
    data = UndisturbedData(loaders(generator)[kind])
    before = generator.get_state()
    first, second = [[batch.clone() for batch in data] for _ in range(2)]
    assert torch.equal(generator.get_state(), before)
    order = [torch.cat([torch.atleast_2d(batch) for batch in batches])[:, 0].tolist() for batches in (first, second)]
    assert sorted(order[0]) == sorted(order[1]) == [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]
    assert (order[0] == order[1]) is (kind != "batch sampler")  # a sequence of its own goes on, so that this is noticed


@pytest.mark.parametrize("generator", [random.Random(0), np.random.default_rng(0), np.random.RandomState(0)])
def test_reading_data_leaves_the_generators_of_a_dataset(generator: Any) -> None:
    source = source_of(generator)
    assert source is not None
    before = source.read()
    assert len(list(UndisturbedData(DataLoader(Augmented(generator), batch_size=2)))) == 3
    assert source.read() == before
