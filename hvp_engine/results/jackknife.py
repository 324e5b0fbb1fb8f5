"""Errors from leaving out one group of the data at a time, and the quantiles that bars of few groups need."""

from __future__ import annotations

import math

import numpy as np

from hvp_engine.results.smoothing import FloatArray

NORMAL = 1.959963984540054  # 97.5 % quantile of the normal distribution
# The same of Student's t with 1 to 6 degrees of freedom.
_STUDENT = (12.7062047364, 4.3026527297, 3.1824463053, 2.7764451052, 2.5705818356, 2.4469118511)


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t: half-widths of 95 % bars in standard errors.

    From 7 degrees of freedom on by the expansion of Fisher and Cornish (Technometrics 2, 1960), to 0.1 %.

    Args:
        freedom: Degrees of freedom; nan is returned below 1.
    """
    if freedom < 1:
        return math.nan
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = NORMAL
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def leave_one_out_variance(values: FloatArray) -> float:
    """Return the jackknife variance of a statistic from its values without each group in turn.

    ``(G - 1) / G sum_g (t_(g) - mean)^2`` (Tukey 1958); for statistics that are symmetric in the groups it is too large
    on average, never too small (Efron & Stein, "The jackknife estimate of variance", Annals of Statistics 9, 1981).

    Args:
        values: (groups,): the statistic of all groups but one.
    """
    groups = len(values)
    return float((groups - 1) / groups * np.square(values - values.mean()).sum()) if groups > 1 else math.nan


def ratio_variance(residuals: FloatArray, weight: float) -> FloatArray:
    """Return the variance of ratios ``sum_g x_g / sum_g w_g`` over randomly drawn groups, to first order.

    ``G / (G - 1) sum_g (x_g - ratio w_g)^2 / weight^2`` (Cochran, "Sampling Techniques", 3rd ed. 1977, 6.4): the
    jackknife in the limit of many groups, without its trouble where one group has most of the weight.

    Args:
        residuals: (..., groups): ``x_g - ratio w_g``.
        weight: Sum of the groups' weights.

    Returns:
        (...): nan for a single group.
    """
    groups = residuals.shape[-1]
    if groups < 2:
        return np.full(residuals.shape[:-1], math.nan)
    found: FloatArray = groups / (groups - 1) * np.square(residuals).sum(axis=-1) / weight**2
    return found


def variance_range(freedom: int) -> tuple[float, float]:
    """Return by which factors a variance that was estimated with few degrees of freedom may be off, 95 %.

    By the approximation of chi-square by Wilson and Hilferty (PNAS 17, 1931).

    Args:
        freedom: Degrees of freedom, at least 1.

    Returns:
        The true variance is the estimated one times a factor between these two.
    """
    ends = ((1.0 - 2.0 / (9.0 * freedom) + side * NORMAL * math.sqrt(2.0 / (9.0 * freedom))) ** 3 for side in (1, -1))
    least, most = (1.0 / end if end > 0 else math.inf for end in ends)
    return least, most
