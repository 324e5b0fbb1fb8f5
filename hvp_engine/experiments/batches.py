"""The data of one model and seed: what it trains on, where its Hessian is taken, what it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batches:
    """Batches of one task, all of them functions of one seed.

    Attributes:
        fixed: Where the Hessian is taken: drawn at random over the training set once, then the same in every pass.
        training: Makes an endless iterator over training batches; every call makes the same one.
        held_out: What was not trained on, for any number of passes.
        source: Where the data come from, under which licence, for manifests.
    """

    fixed: Sequence[Any]
    training: Callable[[], Iterator[Any]]
    held_out: Iterable[Any]
    source: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lazy:
    """Batches that are made in every pass anew, where all of them at once would be too large.

    Attributes:
        indices: Of the samples, a tensor per batch.
        take: Makes a batch of them.
    """

    indices: Sequence[Tensor]
    take: Callable[[Tensor], Any]

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches."""
        return map(self.take, self.indices)
