"""Blocks without curvature, whose numbers are what rounding left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hvp_engine.results.spectrum import Spectrum

_ROUNDING: Mapping[object, float] = {"fp64": float(np.finfo(np.float64).eps)}
_ROUNDING_ELSE = float(np.finfo(np.float32).eps)
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
    sizes = np.array([float(np.abs(spectrum.nodes).max()) for spectrum in spectra])
    rounding = _ROUNDING["fp64"] if precision is None else _ROUNDING.get(precision, _ROUNDING_ELSE)
    zero = sizes <= rounding * sizes.max(initial=0.0)
    return tuple(
        spectrum.name for spectrum, small in zip(spectra, zero, strict=True) if small or spectrum.noise >= _ALL_NOISE
    )
