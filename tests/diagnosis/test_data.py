"""Data that changes between passes or cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from patients import DATA, Model, X, examine, only
from torch.utils.data import DataLoader


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
