"""How unlike each other the blocks of a model are: the statistics that drivers decide by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import nn

from hvp_engine.api import gradients
from hvp_engine.errors import ConfigurationError
from hvp_engine.problem.objective import Loss

FloatArray = NDArray[np.float64]


def gini(x: ArrayLike) -> float:
    """Return the Gini coefficient of non-negative numbers: 0 where all are alike, 1 - 1/n where one has everything.

    Raises:
        ConfigurationError: There is no number, one is negative or not finite, or all are 0.
    """
    values = np.sort(np.asarray(x, dtype=np.float64).ravel())
    if values.size == 0 or not np.isfinite(values).all() or values[0] < 0.0 or values[-1] == 0.0:
        raise ConfigurationError("A Gini coefficient is of finite numbers of at least 0, one of which is above it.")
    ranks = 2.0 * np.arange(1, values.size + 1) - values.size - 1.0
    return float(ranks @ values / (values.size * values.sum()))


def spread(x: ArrayLike) -> float:
    """Return the standard deviation of the decimal logarithms of positive numbers, one per block.

    Raises:
        ConfigurationError: There is no number, or one is not positive and finite.
    """
    return float(_logs(x).std())


def js0(matrix: ArrayLike) -> float:
    """Return the mean of a symmetric matrix of distances over all distinct pairs that are known.

    Args:
        matrix: (n, n); what is not finite, of a block without curvature say, is left out.

    Raises:
        ConfigurationError: No pair is known.
    """
    values = np.asarray(matrix, dtype=np.float64)
    pairs = values[np.triu_indices(len(values), 1)]
    known = pairs[np.isfinite(pairs)]
    if known.size == 0:
        raise ConfigurationError("A mean over pairs of blocks needs two blocks with a distance; choose more blocks.")
    return float(known.mean())


def energy_share(matrix: ArrayLike, groups: Iterable[ArrayLike]) -> float:
    """Return which share of a matrix's squared Frobenius norm lies in its diagonal blocks.

    Args:
        matrix: (n, n).
        groups: The rows of each block, as indices; blocks do not overlap.

    Raises:
        ConfigurationError: The matrix is zero.
    """
    squares = np.asarray(matrix, dtype=np.float64) ** 2
    whole = float(squares.sum())
    if whole == 0.0:
        raise ConfigurationError("A matrix of zeros has no energy to share out; take another block.")
    return float(sum(squares[np.ix_(rows, rows)].sum() for rows in map(np.asarray, groups))) / whole


def pearson_of_logs(x: ArrayLike, y: ArrayLike) -> float:
    """Return Pearson's correlation of the logarithms of positive numbers.

    Raises:
        ConfigurationError: One is not positive and finite.
    """
    return float(stats.pearsonr(_logs(x), _logs(y)).statistic)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's correlation of ranks."""
    return float(stats.spearmanr(x, y).statistic)


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Return Kendall's tau, corrected for ties."""
    return float(stats.kendalltau(x, y).statistic)


def interval(
    statistic: Callable[[FloatArray, FloatArray], float], x: Sequence[float], y: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic of pairs, such as :func:`spearman`.

    Pairs are drawn together; there should be ten or more, for draws of one pair alone correlate with nothing.
    """
    found = stats.bootstrap(
        (x, y),
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=999,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def gradient_norms(model: nn.Module, loss: Loss, batches: Iterable[Any]) -> dict[str, float]:
    """Return the length of the gradient of every parameter by name, of the mean over all batches.

    Args:
        model: The network.
        loss: As for :func:`hvp_engine.slq`.
        batches: Re-iterable, likewise.
    """
    return {name: found.norm for name, found in gradients(model, loss, "parameter", data=batches).items()}


def _logs(x: ArrayLike) -> FloatArray:
    values = np.asarray(x, dtype=np.float64).ravel()
    if values.size == 0 or not (np.isfinite(values) & (values > 0.0)).all():
        raise ConfigurationError(
            "A statistic of logarithms is of positive and finite numbers; leave out blocks without curvature, and "
            "tensors whose gradient is zero in exact arithmetic, such as the biases of keys."
        )
    logarithms: FloatArray = np.log10(values)
    return logarithms
