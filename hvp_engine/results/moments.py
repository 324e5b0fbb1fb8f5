"""Traces of functions of a block, with 95 % bars that one probe is enough for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.reading import Reading
from hvp_engine.results.ritz import BoolArray
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.sphere import Function, student, traces
from hvp_engine.system.formatting import first_line

_BEND = 2.0  # what one step leaves open is so much the bend of f over its residual


@dataclass(frozen=True)
class _Part:
    """One estimate among several that are independent of each other."""

    value: float
    variance: float
    freedom: float = math.inf


def power_sum(reading: Reading, k: int) -> Estimate:
    """Estimate ``tr H^k``, for k of at least 0; single products take part where k is 1 or 2.

    The bar counts the chance of the probes, the error of the products, and where k is beyond what the steps make exact,
    what more of them would change.
    """
    if k == 0:
        n = float(reading.found.numel)
        return Estimate(n, 0.0, n, n, "exact")
    parts, single = [_streams(reading, lambda x: x**k, reading.accepted)], _single_products(reading, k)
    if single is not None:
        parts.append(single)
    exact = 2 * int(reading.found.steps.min()) > k
    bias = 0.0 if exact else _left_to_change(reading, lambda x: x**k)
    return _estimate(reading, lambda x: x**k, parts, bias, _noise_of_power(reading, k))


def trace_of(reading: Reading, f: Function) -> Estimate:
    """Estimate ``tr f(H)``, for an f that is finite at every Ritz value.

    The bar counts the chance of the probes, what more steps would change, and the error of the products, all of whose
    eigenvalues it takes to move the same way. It has no ends where they would move to where f is infinite.
    """
    bias = _left_to_change(reading, f) + _noise_of(reading, f)
    return _estimate(reading, f, [_streams(reading, f, reading.accepted)], bias, 0.0)


def logarithm(x: FloatArray) -> FloatArray:
    """Return the natural logarithm, minus infinity from 0 down."""
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(x, 0.0))


def evaluated(function: Function, x: FloatArray) -> FloatArray:
    """Evaluate a user's function.

    Raises:
        ConfigurationError: It does not give one finite number for every element of x.
    """
    if not x.size:
        return x
    needs = (
        "apply needs a function that gives a finite number for every element of a NumPy array of eigenvalues, "
        f"here {x.min():.3g} to {x.max():.3g}"
    )
    try:
        with np.errstate(all="ignore"):
            found = np.asarray(function(x.copy()))
            values = found.astype(np.float64, casting="same_kind")
    except (TypeError, ValueError) as error:  # of numbers one by one, of tensors, complex, or no function at all
        raise ConfigurationError(f"{needs}; this one fails ({first_line(error)}).") from error
    if values.shape != x.shape or not np.isfinite(values).all():
        raise ConfigurationError(f"{needs}; for a logarithm or a root, shift or clip them first.")
    return values


def root(square: Estimate) -> Estimate:
    """Turn an estimate of a sum of squares into one of its root."""
    norm = math.sqrt(max(square.value, 0.0))
    stderr = square.stderr / (2.0 * norm) if norm > 0.0 else square.stderr
    low, high = (math.sqrt(max(end, 0.0)) for end in (square.low, square.high))
    return Estimate(norm, stderr, low, high, square.reading)


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """Multiply an estimate by a positive number."""
    value, stderr, low, high = (factor * end for end in (*estimate, estimate.low, estimate.high))
    return Estimate(value, stderr, low, high, estimate.reading)


def of_probes(values: FloatArray) -> Estimate:
    """Average what single probes gave, with the bar that their spread alone gives; nan where there is one probe."""
    count, value = values.size, float(values.mean())
    if count == 1:
        return Estimate(value, math.nan)
    stderr = float(values.std(ddof=1)) / math.sqrt(count)
    half = student(count - 1) * stderr
    return Estimate(value, stderr, value - half, value + half)


def _streams(reading: Reading, f: Function, accepted: BoolArray) -> _Part:
    """Average over the streams; the variance is that of the sphere, which few probes show better than their spread."""
    pairs = reading.ritz
    values, variances = traces(reading.found.numel, pairs, accepted, f)
    return _Part(float(values.mean()), float(variances.mean()) / len(values))


def _single_products(reading: Reading, k: int) -> _Part | None:
    single = reading.deflated
    if single is None or reading.exact or k > 2:
        return None
    if k == 1:
        return _Part(single.trace, single.trace_variance, single.freedom)
    return _Part(single.square, reading.square_variance)


def _estimate(reading: Reading, f: Function, parts: list[_Part], bias: float, noise: float) -> Estimate:
    """Weigh independent parts by their variances, and put the bar around them."""
    parts = [part for part in parts if part.variance < math.inf] or parts[:1]
    whole = sum(part.variance for part in parts)
    if any(part.variance == 0.0 for part in parts):
        parts = [part for part in parts if part.variance == 0.0][:1]
        whole = 0.0
    precision = sum(1.0 / part.variance for part in parts) if 0.0 < whole < math.inf else 0.0
    shares = [1.0 / (part.variance * precision) for part in parts] if precision else [1.0]
    value = sum(share * part.value for share, part in zip(shares, parts, strict=True))
    uncertain = sum(share**2 / part.freedom for share, part in zip(shares, parts, strict=True))
    variance = 1.0 / precision if precision else whole
    stderr = math.hypot(math.sqrt(variance), noise)
    half = math.hypot((student(1.0 / uncertain) if uncertain else student(math.inf)) * math.sqrt(variance), 2.0 * noise)
    kind = "exact" if reading.exact else "deflated" if len(parts) > 1 else "vr"
    low, high = value - half, value + half
    if reading.suspected:
        # Weights too heavy for single eigenvalues are those of repeated ones, or chance: the bar holds both.
        for taken in (
            () if reading.doubted and len(parts) > 1 else (reading.candidates, np.zeros_like(reading.accepted))
        ):
            other = _streams(reading, f, taken)
            reach = student(math.inf) * math.sqrt(other.variance)
            low, high = min(low, other.value - reach), max(high, other.value + reach)
    return Estimate(value, stderr, low - bias, high + bias, kind)


def _noise_of_power(reading: Reading, k: int) -> float:
    """Return the error of ``tr H^k`` that products bring, as independent of each other as their directions are."""
    if not reading.found.noise:
        return 0.0
    rule = reading.variance_reduced
    return k * reading.found.noise * math.sqrt(rule.numel * float(rule.weights @ rule.nodes ** (2 * k)))


def _noise_of(reading: Reading, f: Function) -> float:
    """Return the most by which ``tr f(H)`` moves where every eigenvalue moves as far as a product is wrong."""
    if not reading.found.noise:
        return 0.0
    rule = reading.variance_reduced
    reach = reading.found.noise * (np.abs(rule.nodes) + math.sqrt(float((rule.nodes**2).mean())))
    here = f(rule.nodes)
    moved = np.maximum(np.abs(f(rule.nodes + reach) - here), np.abs(f(rule.nodes - reach) - here))
    there = rule.weights > 0.0  # what weighs nothing may move to infinity
    return float(rule.numel * (rule.weights[there] @ moved[there]))


def _left_to_change(reading: Reading, f: Function) -> float:
    if not reading.earlier:
        return _left_of_one_step(reading, f)

    def value(of: Reading) -> float:
        rule = of.variance_reduced
        return rule.numel * float(rule.weights @ f(rule.nodes))

    return max(times * abs(value(reading) - value(before)) for times, before in reading.earlier)


def _left_of_one_step(reading: Reading, f: Function) -> float:
    """Return what the residual of streams of one step shows of the bend of f; others have found everything."""
    pairs, n = reading.ritz, reading.found.numel
    if reading.exact or pairs.nodes.shape[1] > 1:
        return 0.0
    if not np.isfinite(pairs.residuals).all():
        return math.inf
    here = f(pairs.nodes)
    bend = 0.5 * (f(pairs.nodes - pairs.residuals) + f(pairs.nodes + pairs.residuals)) - here
    return _BEND * n * float(np.abs(bend).mean())
