"""Blocks without curvature, whose numbers are what rounding left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hvp_engine.results.spectrum import Spectrum

_ALL_NOISE = 0.5  # error of a product, relative to the product, at which it says nothing


def zero_blocks(spectra: Sequence[Spectrum], precision: object) -> tuple[str, ...]:
    """Name the blocks whose Hessian is zero as far as their products can tell.

    A product with such a block is a sum that cancels (the key's bias of an attention shifts every score of a query
    alike), so it is rounding of what the other blocks are made of. A block is zero where its largest eigenvalue is
    below the unit of rounding of the largest one of all blocks, or where the measured error of its products is as
    large as they are.

    Args:
        spectra: All blocks of a model.
        precision: Arithmetic of the products as the settings name it: below float32 what rounds is a matter of the
            operation, so only the unit of float32 counts, beside the measured error; None where it is not known.
    """
    sizes = [float(np.abs(spectrum.nodes).max()) for spectrum in spectra]
    least = rounding(precision) * max(sizes, default=0.0)
    return tuple(s.name for s, size in zip(spectra, sizes, strict=True) if is_zero(size, least, s.noise))


def rounding(precision: object) -> float:
    """Return the unit of rounding that counts for blocks without curvature, see :func:`zero_blocks`."""
    return float(np.finfo(np.float64 if precision in ("fp64", None) else np.float32).eps)


def is_zero(size: float, least: float, noise: float) -> bool:
    """Whether a block has no curvature but rounding.

    Args:
        size: Magnitude of its largest eigenvalue.
        least: What rounding makes of the largest one of all blocks.
        noise: Measured error of its products, relative to them.
    """
    return size <= least or noise >= _ALL_NOISE
