"""How far the Hessian on the data that were given is from the one on all data of their kind, block by block.

The data are cut into G groups of neighbouring samples, taken for independent draws. Group g has the weight W_g and the
matrix P_g, the sum of its samples' Hessians, so that H = sum P_g / sum W_g; the *expected* Hessian is E[P_g] / E[W_g].
The numbers below come from products P_g v alone; see :func:`error_of_block` for the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.jackknife import NORMAL, leave_one_out_variance, ratio_variance, student
from hvp_engine.results.smoothing import FloatArray

QUANTITIES = ("trace", "frobenius_norm", "largest", "smallest")
ENDS = 2  # largest and smallest, in this order
HALVES = 2
WEIGHTLESS = (
    "One half of the data has no weight (all of its targets are ignored), so that the error from the choice of data "
    "cannot be estimated; give more data, or data_error=False."
)


def halves(groups: int) -> NDArray[np.int64]:
    """Say in which half of the data each group is: every other one, so that a drift along the data is in both."""
    return np.arange(groups) % HALVES


@dataclass(frozen=True, eq=False)
class GroupForms:
    """What the products of one block's groups gave; all arrays float64.

    Attributes:
        numel: Number of parameters n.
        weights: (G,): weight W_g of each group, at least 0.
        forms: (probes, G): ``z' P_g z`` for probes z, uniform on the unit sphere.
        gram: (probes, G, G): ``(P_g z)' (P_h z)``.
        quotients: (halves, ends, G): ``y' P_g y`` for the unit vectors y that maximise and minimise ``y'Hy`` on each
            half of the data.
        residuals: (halves, ends): ``|H y - theta y|`` on their own half, theta their Rayleigh quotient.
    """

    numel: int
    weights: FloatArray
    forms: FloatArray
    gram: FloatArray
    quotients: FloatArray
    residuals: FloatArray


@dataclass(frozen=True)
class BlockDataError:
    """Quantities of one block's *expected* Hessian, with bars for the choice of data.

    The bars leave out what the value itself may be wrong on the data given (probes, Lanczos steps): the errors of
    :class:`hvp_engine.Spectrum`, which add to these in squares.

    Attributes:
        trace: Of the expected Hessian; the trace on the data is no different on average.
        frobenius_norm: Of the expected Hessian; the norm on the data is larger, see ``excess``.
        largest: Eigenvalue, in a bracket from two halves of the data.
        smallest: The same for the smallest.
        excess: By quantity, by how much it is larger on the data given than for the expected Hessian, on average;
            falls with the number of samples, where standard errors fall with its root.
    """

    trace: Estimate
    frobenius_norm: Estimate
    largest: Estimate
    smallest: Estimate
    excess: Mapping[str, float]

    def centred(self, trace: float, norm: float) -> BlockDataError:
        """Return the same bars around better values of trace and norm on the data: those of a spectrum.

        Args:
            trace: Trace on the data.
            norm: Frobenius norm on the data.
        """
        moved = trace - self.trace.value
        on_data = self.frobenius_norm.value + self.excess["frobenius_norm"]
        scale = norm / on_data if on_data > 0 else math.nan
        return replace(
            self,
            trace=replace(self.trace, value=trace, low=self.trace.low + moved, high=self.trace.high + moved),
            frobenius_norm=replace(
                self.frobenius_norm,
                value=self.frobenius_norm.value * scale,
                stderr=self.frobenius_norm.stderr * scale,
                low=self.frobenius_norm.low * scale,
                high=self.frobenius_norm.high * scale,
            ),
            excess={**self.excess, "frobenius_norm": self.excess["frobenius_norm"] * scale},
        )

    def growth(self, quantity: str, bar: float) -> float:
        """Say how many times the data it takes until a quantity on them is as near to the expected one as wanted.

        Standard errors fall with the root of the number of samples and the excess with the number itself, so that
        ``|excess| x^2 + 1.96 stderr x = bar |value|`` with ``x = 1 / sqrt(times)``.

        Args:
            quantity: One of :data:`QUANTITIES`.
            bar: Wanted half-width of the 95 % bar, relative to the value's magnitude; above 0.

        Returns:
            The factor, below 1 where fewer samples are enough; nan where there is no standard error, infinite where
            the value is 0 and its error is not.
        """
        estimate: Estimate = getattr(self, quantity)
        excess, spread = abs(self.excess[quantity]), NORMAL * estimate.stderr
        target = bar * abs(estimate.value)
        if not math.isfinite(spread):
            return math.nan
        if excess == spread == 0.0:
            return 0.0
        if target == 0.0:
            return math.inf
        # x = 2 target / (spread + sqrt(spread^2 + 4 excess target)): the root of the quadratic, without cancellation
        return ((spread + math.sqrt(spread**2 + 4 * excess * target)) / (2 * target)) ** 2


def error_of_block(forms: GroupForms) -> BlockDataError:
    """Estimate what the choice of data does to one block.

    **Trace.** ``t = n mean_z sum_g z'P_g z / W``, an unbiased ratio to first order. Its residuals by group and probe,
    ``d_zg = n (z'P_g z - t_z W_g)``, have little of the probes' error, which is common to all groups. What they have
    stays in the bar, which errs to the wide side for it, and is subtracted from the standard error, the best guess:
    ``(mean_z d_zg)^2 - var_z(d_zg) / s`` is unbiased, and half of the first term the least that is taken.

    **Frobenius norm.** ``|H|^2`` counts the data's own scatter: ``E |H|^2 = |E H|^2 + E |H - E H|^2``. Different groups
    are independent, so ``tr(H_g H_h)``, g not h, is unbiased for ``|E H|^2``; here for all pairs at once, ``n mean_z
    sum_{g != h} (P_g z)'(P_h z) / sum_{g != h} W_g W_h``, with the jackknife over groups as its error (Efron & Stein
    1981). Values and errors are shares of the same probes' ``|H|^2``, so that their error mostly cancels when a better
    norm is put in (:meth:`BlockDataError.centred`).

    **Extremes.** lambda_max is convex, so ``E lambda_max(H_A) >= lambda_max(E H)`` for any half A of the data. Its
    eigenvector y_A knows nothing of the other half, so ``E[y_A' H_B y_A | A] = y_A' (E H) y_A <= lambda_max(E H)``.
    Both ways round and weighted by halves this is a bracket [L, U]; the residual of y_A is added to U, because the
    eigenvalue may be that much above its Rayleigh quotient. By second-order perturbation both ends are equally far off
    (U by ``sum_j (y_j'DELTA y)^2 / (lambda - lambda_j)``, L by minus that), so the value is the middle, and the excess
    of the whole data, which is twice a half, is (U - L) / 4. The bar is the bracket, widened at both ends by the error
    of L, whose terms ``y'P_g y`` are independent of their y. Minima mirror this.

    Bars are those of Student's t with G - 1 degrees of freedom.

    Args:
        forms: Of G groups.

    Returns:
        The estimates; errors that the groups are too few for (1, or 2 for the norm's) are nan.

    Raises:
        ConfigurationError: One half of the data has no weight.
    """
    t = student(len(forms.weights) - 1)
    trace = _trace(forms, t)
    norm, excess = _norm(forms, t)
    (largest, above), (smallest, below) = (_extreme(forms, end, t) for end in range(ENDS))
    excesses = dict(zip(QUANTITIES, (0.0, excess, above, below), strict=True))
    return BlockDataError(trace, norm, largest, smallest, excesses)


def _trace(forms: GroupForms, t: float) -> Estimate:
    total, n = float(forms.weights.sum()), forms.numel
    by_probe = forms.forms.sum(axis=1) / total
    residuals = n * (forms.forms - by_probe[:, None] * forms.weights)
    variance = least = float(ratio_variance(residuals.mean(axis=0), total))
    probes = len(residuals)
    if probes > 1:
        scatter = float(ratio_variance(residuals - residuals.mean(axis=0), total).sum())
        least = max(variance - scatter / (probes * (probes - 1)), variance / 2)
    value, half = n * float(by_probe.mean()), t * math.sqrt(variance)
    return Estimate(value, math.sqrt(least), value - half, value + half, "jackknife")


def _norm(forms: GroupForms, t: float) -> tuple[Estimate, float]:
    """Return the expected Hessian's norm, and by how much the data's is larger."""
    weights, n = forms.weights, forms.numel
    gram = forms.gram.mean(axis=0)
    on_data = math.sqrt(max(0.0, n * float(gram.sum()))) / float(weights.sum())
    apart = 1.0 - np.eye(len(weights))
    pairs, sizes = gram * apart, np.outer(weights, weights) * apart
    square = n * float(pairs.sum() / sizes.sum()) if sizes.sum() > 0 else math.nan
    left = pairs.sum() - 2.0 * pairs.sum(axis=1)
    left_sizes = sizes.sum() - 2.0 * sizes.sum(axis=1)
    enough = len(weights) > 2 and bool((left_sizes > 0).all())
    spread = n * math.sqrt(leave_one_out_variance(left / left_sizes)) if enough else math.nan
    value = math.sqrt(max(0.0, square))
    stderr = spread / (2.0 * value) if value > 0 else math.sqrt(spread)
    low, high = (math.sqrt(max(0.0, square + side * t * spread)) if enough else math.nan for side in (-1, 1))
    return Estimate(value, stderr, low, high, "jackknife"), on_data - value


def _extreme(forms: GroupForms, end: int, t: float) -> tuple[Estimate, float]:
    """Return an extreme eigenvalue of the expected Hessian, and by how much the data's is larger."""
    weights, quotients = forms.weights, forms.quotients[:, end]
    total, half = float(weights.sum()), halves(len(weights))
    own = half == np.arange(HALVES)[:, None]  # (halves, groups)
    of_half = own @ weights
    if not (of_half > 0).all():
        raise ConfigurationError(WEIGHTLESS)
    outward = 1.0 if end == 0 else -1.0
    # Weighted by halves the own quotients, sum_h W_h (sum of its quotients / W_h) / W, are a plain sum.
    overfitted = float(quotients[own].sum()) / total
    overfitted += outward * float(forms.residuals[:, end] @ of_half) / total
    honest = quotients[1 - half, np.arange(len(half))]  # of each group the quotient with the other half's vector
    inner = float(honest.sum()) / total
    stderr = math.sqrt(float(ratio_variance(honest - inner * weights, total)))
    ends = sorted((inner, overfitted))
    value = (inner + overfitted) / 2.0
    bar = Estimate(value, stderr, ends[0] - t * stderr, ends[1] + t * stderr, "halves")
    return bar, (overfitted - inner) / 4.0
