"""The data of a planned job: as many batches as are asked for, and whether they have contents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.settings import whole_number
from hvp_engine.planning.counting import DataShape
from hvp_engine.problem import batches as batch_tools
from hvp_engine.problem.randomness import UndisturbedData

_MOST = 1 << 62  # batches or tokens


def scaled(shape: DataShape, batches: int | None, tokens: int | None) -> DataShape:
    """Return the data's shape with as many batches as asked for."""
    if batches is None and tokens is None:
        return shape
    if batches is not None and tokens is not None:
        raise ConfigurationError("Give batches or tokens, not both.")
    asked = batches if batches is not None else tokens
    name = "batches" if batches is not None else "tokens"
    number = whole_number(name, asked, 1, most=_MOST)
    if shape.largest is None:
        raise ConfigurationError(f"{name}={asked!r} is for a job with data, and this one has none; leave it out.")
    if tokens is None:
        return replace(shape, batches=float(number))
    first = batch_tools.tensors(shape.largest)[0].numel()
    return replace(shape, batches=max(number / first, 1.0 / first))


def is_meta(data: Iterable[Any] | None) -> bool:
    """Say whether the first batch has no contents."""
    if data is None:
        return False
    first = next(iter(UndisturbedData(data)), None)
    return any(tensor.is_meta for tensor in batch_tools.tensors(first))
