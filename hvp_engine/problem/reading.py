"""Reading the data: what is no collection of batches, is read only once, or has no end is refused, never waited for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from hvp_engine.errors import ObjectiveError
from hvp_engine.problem import batches
from hvp_engine.system.formatting import format_time

# Data that does not know its length may have no end. It is read this far, which lists, and whatever has a length, pass
# without being asked; beyond its length even those are not read for ever.
MOST_BATCHES = 10_000
MOST_SECONDS = 15.0


def check_data(data: object) -> None:
    """Refuse what cannot be read as batches, once for every sweep.

    Raises:
        ObjectiveError: The data is one batch, an iterator, or no collection.
    """
    if isinstance(data, (Tensor, Mapping, np.ndarray)) or (isinstance(data, tuple) and hasattr(data, "_fields")):
        raise ObjectiveError("data is a single batch; pass a list of batches: data=[batch].")
    if isinstance(data, Iterator):
        raise ObjectiveError(
            "data is an iterator, which can be read only once; a sweep needs it every step: pass list(data)."
        )
    if data is not None and not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise ObjectiveError(
            f"data must be a list of batches or another re-iterable, not {type(data).__name__}; for one batch of that "
            "kind pass data=[batch], and data=None for a loss without data."
        )
    if isinstance(data, (tuple, list)) and _is_one_batch(data):
        raise ObjectiveError(
            f"data is a {type(data).__name__} of {len(data)} tensors with the same leading dimension "
            f"({batches.shapes(batches.layout(data))}), which looks like one batch: pass data=[(x, y)] for a batch of "
            "inputs and targets, or a list of tensors of one kind for batches of inputs alone."
        )


def _is_one_batch(data: tuple[Any, ...] | list[Any]) -> bool:
    """Whether tensors stand where batches should.

    A list of tensors of one kind may be batches of inputs alone (token ids, say); a tuple is how a batch is written.
    """
    if len(data) < 2 or not all(isinstance(item, (Tensor, np.ndarray)) for item in data):
        return False
    if batches.samples(data) is None:
        return False
    kinds = {(str(item.dtype), item.ndim) for item in data}
    return isinstance(data, tuple) or len(kinds) > 1


def read(data: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of one pass; the end must come.

    Raises:
        ObjectiveError: Data without a length goes on beyond `MOST_BATCHES` or `MOST_SECONDS`, or data with one goes on
            that far beyond it.
    """
    length, started = length_of(data), time.monotonic()
    for number, batch in enumerate(data):
        beyond = number - (length or 0)
        if beyond <= 0:
            started = time.monotonic()
        elif beyond >= MOST_BATCHES or time.monotonic() - started > MOST_SECONDS:
            said = "has no length" if length is None else f"says that it has {length} batches"
            raise ObjectiveError(
                f"data may have no end: it {said}, and was not over after {number} batches and "
                f"{format_time(time.monotonic() - started)}. Every product needs all of it: pass a list of batches, "
                "for instance list(itertools.islice(data, 100)), or data whose len() is its number of batches."
            )
        yield batch


def length_of(data: object) -> int | None:
    """Return how many batches data says that it has; None where it does not know."""
    try:
        return len(data)  # type: ignore[arg-type]
    except Exception:  # a user's own __len__ may raise anything
        return None


def refuse_exhausted(known: int | None = None) -> ObjectiveError:
    """Make the error for data that had ``known`` batches in the first pass and has none in a later one."""
    return ObjectiveError(
        f"data had {known or 'its'} batches in the first pass and none in the second: it can be read only once, and a "
        "sweep needs it every step. Pass list(data), or data that starts anew whenever it is iterated."
    )
