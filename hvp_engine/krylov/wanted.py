"""Which eigenvalues a job is asked for, and whether one of them can have been missed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.settings import whole_number

Which = Literal["LM", "LA", "SA", "BE"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_FEWEST_PRODUCTS, _PRODUCTS_PER_PAIR = 1000, 100  # where maxiter is not given: the larger of them
_MOST = 10_000_000  # more of anything is a slip
# A squared normal number is below this once in a thousand times: how small the component of a random vector along one
# direction may be, in units of what it is on average, before that direction is taken to be absent.
_UNLIKELY = 1.57e-6


@dataclass(frozen=True)
class Wanted:
    """What a job of eigenpairs was asked for; :func:`hvp_engine.eigsh` says what each setting means.

    Attributes:
        k: Pairs per block.
        which: Which of them.
        tolerance: Largest residual, relative to the largest magnitude of an eigenvalue that was found.
        maxiter: Most products per block before those that measure residuals; a number once this is made.
        vectors: Whether eigenvectors are kept.

    Raises:
        ConfigurationError: A setting is none of its values.
    """

    k: int = 10
    which: Which = "LM"
    tolerance: float = 1e-3
    maxiter: int | None = None
    vectors: bool = True

    def __post_init__(self) -> None:
        """Check every setting; whole numbers of numpy and torch become plain ones."""
        object.__setattr__(self, "k", whole_number("k", self.k, 1))
        default = max(_FEWEST_PRODUCTS, _PRODUCTS_PER_PAIR * self.k)
        most = default if self.maxiter is None else whole_number("maxiter", self.maxiter, 1)
        object.__setattr__(self, "maxiter", most)
        if self.k > _MOST or most > _MOST:
            raise ConfigurationError(f"k={self.k!r} and maxiter={most!r} must be at most {_MOST:,}; use smaller ones.")
        if most < self.k:
            raise ConfigurationError(
                f"maxiter={most!r} is less than k={self.k!r}: every pair takes a product at least; use a larger one."
            )
        if self.which not in get_args(Which):
            raise ConfigurationError(f"which={self.which!r} is not one of {', '.join(map(repr, get_args(Which)))}.")
        if not (isinstance(self.tolerance, (int, float)) and 0.0 < self.tolerance < 1.0):
            raise ConfigurationError(f"tolerance={self.tolerance!r} must be a number above 0 and below 1.")
        if not isinstance(self.vectors, bool):
            raise ConfigurationError(f"vectors={self.vectors!r} must be True or False.")

    @property
    def most(self) -> int:
        """The most products of a block before those that measure residuals."""
        assert self.maxiter is not None  # a number once this is made
        return self.maxiter

    def of(self, numel: int) -> int:
        """Return how many pairs a block gets: all of them where it has no more."""
        return min(self.k, numel)

    def record(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return {
            "k": self.k,
            "which": self.which,
            "tolerance": float(self.tolerance),
            "maxiter": self.maxiter,
            "vectors": self.vectors,
        }


def preferred(values: FloatArray, which: Which) -> IntArray:
    """Order eigenvalues by how much they are wanted.

    Args:
        values: (n,) ascending.
        which: ``"LM"``: by magnitude; ``"LA"``: from the largest down; ``"SA"``: from the smallest up; ``"BE"``: from
            both ends in turn, the largest first.

    Returns:
        (n,) places in ``values``.
    """
    places = np.arange(len(values))
    if which == "SA":
        return places
    if which == "LA":
        return places[::-1].copy()
    if which == "LM":
        return np.argsort(-np.abs(values), kind="stable")
    order = np.empty_like(places)
    order[0::2] = places[::-1][: len(places[0::2])]
    order[1::2] = places[: len(places[1::2])]
    return order


def displacing(values: FloatArray, which: Which, margin: float) -> FloatArray:
    """Say where a further copy of an eigenvalue would displace another one that is at least ``margin`` from it.

    Args:
        values: (k,) ascending: the wanted ones that were found.
        which: Which they are.
        margin: Differences below it do not matter.

    Returns:
        (2,): from the first value up, and from the second down; infinite where there is no such value.
    """
    if which == "LM":
        least = float(np.abs(values).min()) + margin
        return np.array([_least(values[values > least]), -_least(-values[values < -least])])
    low = 0 if which == "LA" else len(values) if which == "SA" else len(values) // 2
    lower, upper = values[:low], values[low:]
    first = _least(upper[upper > upper.min() + margin]) if len(upper) else math.inf
    last = -_least(-lower[lower < lower.max() - margin]) if len(lower) else -math.inf
    return np.array([first, last])


def is_absent(total: float, numel: int) -> bool:
    """Say whether a matrix has no eigenvalue of some value, but for a chance of one in a thousand.

    Let v be an eigenvector of that value, and g a random unit vector. What grows from g has components along v that
    follow from that of g by v'Hq = x v'q; as it is orthonormal, their squares do not amount to more than 1. So the
    square of v'g is at most 1 / ``total``. In Lanczos that is the Christoffel function (Szego, Orthogonal Polynomials,
    3.4). For a vector of the sphere it is a squared normal number over ``numel``: where the bound is far below that,
    there is no such v.

    Args:
        total: Squared components, in units of g's.
        numel: Length of a vector.
    """
    return total >= numel / _UNLIKELY or math.isnan(total)


def _least(values: FloatArray) -> float:
    return float(values.min()) if len(values) else math.inf
