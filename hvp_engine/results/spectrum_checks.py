"""What a spectrum is made of, checked: a stranger's arrays do not become numbers."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.smoothing import FloatArray

_MASS_TOLERANCE = 1e-6
_MOST_PARAMETERS = (1 << 62) - 1
# How far two eigensolvers may be apart, relative to the norm of the matrix: a few hundred units of rounding.
_SAME_NODE = 1e-11
# An eigenvector is known to rounding over the gap to its neighbours, so the weights of closer nodes count together.
_GAP, _SAME_WEIGHT = 1e-5, 1e-7
SINGLE_FIELDS = 3
"""Numbers of a single product: h'Hh / h'h, |Hh|^2 / h'h and (q'h)^2 / h'h."""


def checked_numel(name: str, numel: object) -> int:
    """Return a number of parameters as an int.

    Raises:
        ConfigurationError: It is none, or the name is no name.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"The name of a block must be a non-empty string, not {name!r}.")
    if any(map(_is_surrogate, name)):
        raise ConfigurationError(f"The name of a block must be text, and {name!r} has half a character; rename it.")
    whole = hasattr(numel, "__index__") and not isinstance(numel, bool)
    if not whole or not 1 <= operator.index(numel) <= _MOST_PARAMETERS:  # type: ignore[arg-type]
        raise ConfigurationError(f"Block {name!r}: numel must be at least 1, and an integer below 2**62.")
    return operator.index(numel)  # type: ignore[arg-type]


def checked_shift(name: str, shift: object, smallest: float) -> float:
    """Return what is added to eigenvalues so that they have a logarithm.

    Args:
        name: Name of the block.
        shift: The shift.
        smallest: The smallest eigenvalue that was found.

    Raises:
        ConfigurationError: It is no finite number, or leaves the smallest one at or below zero.
    """
    if isinstance(shift, bool) or not isinstance(shift, (int, float, np.number)) or not math.isfinite(shift):
        raise ConfigurationError(f"shift={shift!r} must be a finite number.")
    if not smallest + float(shift) > 0.0:
        above = f"of {-1.01 * smallest:.3g} or more" if smallest < 0.0 else "above 0"  # rounding takes less than 1 %
        raise ConfigurationError(
            f"Block {name!r}: H + shift I is not positive, its determinant has no logarithm: the smallest eigenvalue "
            f"that was found is {smallest:.3g}, and shift={float(shift):.3g}. Give a shift {above}, or choose what to "
            "do with the negative ones: apply(lambda x: np.log(np.maximum(x, 1e-6)))."
        )
    return float(shift)


def _is_surrogate(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def checked_array(name: str, field: str, given: ArrayLike) -> NDArray[Any]:
    """Return a copy as float64, or as int64 for steps.

    Raises:
        ConfigurationError: It is no array of such numbers: ragged, of text, complex, with fractions of steps.
    """
    dtype = np.int64 if field == "steps" else np.float64
    try:
        raw = np.asarray(given)
        array = np.array(raw, dtype=dtype) if raw.dtype.kind in "biuf" else None
    except (TypeError, ValueError, RuntimeError, OverflowError):  # a tensor that needs gradients is a RuntimeError
        array = None
    if array is None or (field == "steps" and (array != raw).any()):
        raise ConfigurationError(
            f"Block {name!r}: {field} must be an array of {'integers' if field == 'steps' else 'real numbers'}, whose "
            f"rows are equally long; {type(given).__name__} does not make one."
        )
    return array


def check_tridiagonal(name: str, alphas: FloatArray, betas: FloatArray, steps: NDArray[np.int64]) -> None:
    """Refuse coefficients of wrong shapes, or that are not finite.

    Raises:
        ConfigurationError: They are.
    """
    if alphas.ndim != 2 or 0 in alphas.shape:
        raise ConfigurationError(f"Block {name!r}: alphas must have shape (probes, m), not {alphas.shape}.")
    probes, m = alphas.shape
    for field, array, shape in (("betas", betas, (probes, m - 1)), ("steps", steps, (probes,))):
        if array.shape != shape:
            raise ConfigurationError(f"Block {name!r}: {field} must have shape {shape}, not {array.shape}.")
    if steps.min() < 1 or steps.max() > m:
        raise ConfigurationError(f"Block {name!r}: steps must lie between 1 and {m}, not {steps.tolist()}.")
    for field, array in (("alphas", alphas), ("betas", betas)):
        if not np.isfinite(array).all():
            raise ConfigurationError(
                f"Block {name!r}: not all {field} are finite; a product overflowed, or the loss "
                "is not smooth: try precision='fp64', or leave the block out."
            )


def check_quadrature(
    name: str, alphas: FloatArray, nodes: FloatArray, weights: FloatArray, steps: NDArray[np.int64]
) -> None:
    """Refuse nodes and weights that are no quadrature of such tridiagonal matrices.

    Raises:
        ConfigurationError: Shapes, order or mass are wrong.
    """
    for field, array in (("nodes", nodes), ("weights", weights)):
        if array.shape != alphas.shape:
            raise ConfigurationError(
                f"Block {name!r}: {field} have shape {array.shape}, but alphas {alphas.shape}; "
                "build the spectrum with Spectrum.from_tridiagonal."
            )
        if not np.isfinite(array).all():
            raise ConfigurationError(f"Block {name!r}: {field} are not all finite; run the block again.")
    if (np.diff(nodes, axis=1) < 0.0).any():
        raise ConfigurationError(
            f"Block {name!r}: the nodes of a probe must ascend; build the spectrum with Spectrum.from_tridiagonal."
        )
    padding = np.arange(alphas.shape[1]) >= steps[:, None]
    excess = abs(weights.sum(axis=1) - 1.0)
    if weights.min() < 0.0 or weights[padding].any() or excess.max() > _MASS_TOLERANCE:
        raise ConfigurationError(
            f"Block {name!r}: the weights of a probe must be non-negative, sum to 1 and be 0 "
            "past its steps; build the spectrum with Spectrum.from_tridiagonal."
        )


def check_remainder(name: str, probes: int, residuals: FloatArray, singles: FloatArray, noise: float) -> None:
    """Refuse residuals, single products or a noise that cannot be.

    Raises:
        ConfigurationError: A shape is wrong, or a number is negative or not finite.
    """
    if residuals.shape != (probes,) or (residuals < 0.0).any() or np.isinf(residuals).any():
        raise ConfigurationError(
            f"Block {name!r}: residuals must be {probes} numbers of at least 0 (nan where unknown), not of shape "
            f"{residuals.shape}."
        )
    if singles.ndim != 2 or singles.shape[1] != SINGLE_FIELDS or not np.isfinite(singles).all():
        raise ConfigurationError(
            f"Block {name!r}: singles must be finite, of shape (products, {SINGLE_FIELDS}), not {singles.shape}."
        )
    if not (isinstance(noise, (int, float)) and math.isfinite(noise) and noise >= 0.0):
        raise ConfigurationError(f"Block {name!r}: noise={noise!r} must be a number of at least 0.")


def same_quadrature(nodes: FloatArray, weights: FloatArray, others: FloatArray, their_weights: FloatArray) -> bool:
    """Say whether two quadratures of the same tridiagonal matrices, (probes, m), differ by rounding only."""
    scale = np.abs(others).max(axis=1, keepdims=True)
    if (np.abs(others - nodes) > _SAME_NODE * scale).any():
        return False
    apart = np.diff(others, axis=1, append=np.inf) > _GAP * scale
    mass = np.abs(their_weights.cumsum(axis=1) - weights.cumsum(axis=1))
    return not (mass[apart] > _SAME_WEIGHT).any()
