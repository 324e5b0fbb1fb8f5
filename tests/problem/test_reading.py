"""Data that is one batch, is read once, or has no end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from refusals import mean_loss, refuse
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from weighed import EQUAL, X, Y, classifier, deviation

import hvp_engine as he
from hvp_engine.errors import ObjectiveError
from hvp_engine.problem import reading


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(zip(X, Y, strict=True))


class Once(IterableDataset[Any]):
    def __init__(self) -> None:
        self.samples = iter(list(zip(X, Y, strict=True)))

    def __iter__(self) -> Iterator[Any]:
        return self.samples


class NoIndexError:
    """Knows its length, and is indexed beyond it."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> Any:
        return EQUAL[number % 2]


@pytest.mark.parametrize("data", [(X, Y), [X, Y], (X[:, :1], X[:, 1:2])], ids=["tuple", "list", "alike"])
def test_tensors_in_the_place_of_batches_are_refused_with_the_fix(data: Any) -> None:
    refuse(r"looks like one batch: pass data=\[\(x, y\)\]", classifier(), mean_loss, data)


def test_a_list_of_tensors_of_one_kind_is_a_list_of_batches() -> None:
    def loss(model: Any, batch: Any) -> Any:
        return model(batch).square().mean()

    def right(model: Any) -> torch.Tensor:
        return loss(model, X.double())

    assert deviation(classifier(), loss, [X[:8], X[8:]], right) < 1e-6


def test_one_batch_that_is_an_object_is_refused_with_the_fix() -> None:
    refuse(r"pass data=\[batch\]", classifier(), mean_loss, SimpleNamespace(x=X, y=Y))
    refuse(r"data=\[batch\]", classifier(), mean_loss, {"x": X})


def test_data_that_is_read_once_is_told_from_empty_data() -> None:
    refuse("4 batches in the first pass and none in the second", classifier(), mean_loss, DataLoader(Once(), 4))
    refuse("yields no batch", classifier(), mean_loss, [])
    with pytest.raises(ObjectiveError, match="none in the second"):
        he.plan(classifier(), mean_loss, data=DataLoader(Once(), 4))
    assert deviation(classifier(), mean_loss, list(DataLoader(Once(), 4))) < 1e-6


@pytest.mark.parametrize("data", [DataLoader(Endless(), batch_size=4), NoIndexError()], ids=["stream", "sequence"])
def test_data_without_an_end_is_refused_not_waited_for(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BATCHES", 50)
    with pytest.raises(ObjectiveError, match="may have no end: it (has no length|says that it has 2 batches)"):
        he.hvp(classifier(), mean_loss, {}, data=data)
    with pytest.raises(ObjectiveError, match="may have no end"):
        he.slq(classifier(), mean_loss, data=data, steps=2, probes=1)
    with pytest.raises(ObjectiveError, match="may have no end"):
        he.plan(classifier(), mean_loss, data=data, device="a100-80gb")
    limited = list(itertools.islice(iter(data), 4))  # the fix
    he.hvp(classifier(), mean_loss, {"full": torch.ones(1, 43)}, data=limited)


def test_slow_data_without_an_end_is_refused_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_SECONDS", 0.02)
    refuse("may have no end", classifier(), mean_loss, DataLoader(Endless(), batch_size=4))


def test_long_data_that_knows_its_length_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BATCHES", 2)
    monkeypatch.setattr(reading, "MOST_SECONDS", 0.0)
    assert deviation(classifier(), mean_loss, DataLoader(TensorDataset(X, Y), batch_size=2)) < 1e-6


class Broken:
    """Data that raises where it is begun, or at a batch."""

    def __init__(self, error: BaseException, at: int | None) -> None:
        self.error, self.at = error, at

    def __iter__(self):
        if self.at is None:
            raise self.error
        return self.batches()

    def batches(self):
        for number in range(3):
            if number == self.at:
                raise self.error
            yield X, Y


@pytest.mark.parametrize(
    ("error", "at", "words"),
    [
        (KeyError("split"), None, "The data could not be iterated: KeyError: 'split'"),
        (StopIteration(), None, "The data could not be iterated: StopIteration"),
        (ValueError("no\nfile."), 1, "Batch 1 of the data could not be read: ValueError: no file. Mend"),
    ],
)
def test_what_the_data_raise_is_said_of_the_data(error: BaseException, at: int | None, words: str) -> None:
    data = Broken(error, at)
    for call in (
        lambda: he.hvp(classifier(), mean_loss, {}, data=data),
        lambda: he.slq(classifier(), mean_loss, data=data, steps=2, probes=1),
        lambda: he.plan(classifier(), mean_loss, data=data, device="a100-80gb"),
    ):
        with pytest.raises(ObjectiveError, match=words):
            call()
    assert words in str(he.doctor(classifier(), mean_loss, data=data, seconds=0.1)).replace("\n", " ")


def test_a_length_that_cannot_be_told_is_none() -> None:
    class Lying:
        def __len__(self) -> int:
            raise ValueError("not yet")

        def __iter__(self):
            return iter([(X, Y)])

    assert deviation(classifier(), mean_loss, Lying()) < 1e-6


def test_data_without_numbers_are_refused_where_numbers_are_needed() -> None:
    refuse('has tensors on the "meta" device', classifier(), mean_loss, [(X.to("meta"), Y)])


def test_a_batch_that_cannot_be_walked_to_its_end_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    refuse("nested too deeply", classifier(), mean_loss, [(X, Y, endless)])
