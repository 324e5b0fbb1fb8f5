"""Data that changes between passes or cannot be used."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from patients import DATA, Model, X, examine, loss, only
from torch.utils.data import DataLoader

import hvp_engine as he


def test_shuffled_changing_and_unordered_data() -> None:
    pairs = [(x, torch.tensor(i % 3)) for i, x in enumerate(torch.randn(32, 5))]
    shuffled = DataLoader(pairs, batch_size=4, shuffle=True)  # type: ignore[arg-type]
    assert only(examine(Model(), data=shuffled), "data-shuffled").severity == "error"
    ordered = DataLoader(pairs, batch_size=4)  # type: ignore[arg-type]
    assert examine(Model(), data=ordered).samples == 32
    assert examine(Model(), data=ordered).ok

    class Noisy:
        def __iter__(self) -> Iterator[Any]:
            yield torch.randn(2, 5), torch.tensor([0, 1])

    class Growing:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            yield from DATA * self.passes

    assert "batch 0 had other contents" in only(examine(Model(), data=Noisy()), "data-changes").message
    assert "1 batches, the next more" in only(examine(Model(), data=Growing()), "data-changes").message
    assert only(examine(Model(), data=set(DATA)), "unordered-data").severity == "warning"


def test_data_that_cannot_be_used() -> None:
    assert "yields no batch" in only(examine(Model(), data=[]), "data-unusable").message
    assert "single batch" in only(examine(Model(), data=X), "data-unusable").message
    assert "only once" in only(examine(Model(), data=iter(DATA)), "data-unusable").message


def test_data_that_may_have_no_end_is_warned_of() -> None:
    class Endless:
        def __iter__(self) -> Iterator[Any]:
            return itertools.cycle(DATA)

    finding = only(he.doctor(Model(), loss, data=Endless(), seconds=0.1), "data-endless")
    assert finding.severity == "warning"
    assert "end" in finding.message
    assert "islice" in finding.fix


def test_weights_that_are_not_certain_are_what_hvp_refuses() -> None:
    halves = [(x[:2], y[:2]) for x, y in DATA] + [(x[2:], y[2:]) for x, y in DATA]
    ragged = [(x[:3], y[:3]) for x, y in DATA] + [(x[3:], y[3:]) for x, y in DATA]
    classes = torch.tensor([1.0, 5.0, 0.1])

    def summed(model: Any, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    def by_class(model: Any, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1], weight=classes.to(batch[0].dtype))

    def accuracy(model: Any, batch: Any) -> Any:
        logits = model(batch[0])
        return F.cross_entropy(logits, batch[1]), (logits.argmax(1) == batch[1]).float().mean()

    vectors = {"full": torch.ones(1, sum(p.numel() for p in Model().parameters()))}
    for use, data in ((summed, halves), (by_class, ragged), (accuracy, DATA)):
        finding = only(examine(Model(), use, data), "weights-uncertain")
        assert finding.severity == "error"
        with pytest.raises(he.errors.ObjectiveError) as refused:
            he.hvp(Model(), use, vectors, data=data)
        assert str(refused.value) == finding.message
    assert only(examine(Model(), summed), "loss-is-a-sum").severity == "warning"
    he.hvp(Model(), summed, vectors, data=DATA)
    assert only(examine(Model(), by_class), "batches-cannot-be-split").severity == "note"
    assert examine(Model(), loss, ragged).findings == []
