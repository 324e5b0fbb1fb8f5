"""Data that fail, change, or say something wrong about themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def batch(samples: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 4, generator=generator), torch.randint(0, 3, (samples,), generator=generator)


class Failing:
    """Data that fails, or says something wrong about itself."""

    def __init__(self, fails_at: int, error: BaseException) -> None:
        self.fails_at, self.error = fails_at, error

    def __iter__(self) -> Iterator[Any]:
        for number in range(3):
            if number == self.fails_at:
                raise self.error
            yield batch(seed=number)


class Changing:
    """Data that is another in every pass."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        yield batch(seed=self.passes)


class Once:
    """Data that is used up after one pass."""

    def __init__(self) -> None:
        self.iterator = iter([batch(), batch(seed=2)])

    def __iter__(self) -> Iterator[Any]:
        return self.iterator


class Lying:
    """Data that says something wrong about its length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter([batch()])


class Unreadable:
    """Data that cannot even be begun."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        raise self.error


def deep(levels: int) -> Any:
    nest: Any = batch()
    for _ in range(levels):
        nest = [nest]
    return nest


def recursive() -> list[Any]:
    data: list[Any] = []
    data.append(data)
    return data
