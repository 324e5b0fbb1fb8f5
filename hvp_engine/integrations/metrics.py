"""The numbers of a measurement under names that TensorBoard, Weights & Biases, MLflow and CSV files all take."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import count

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum

WHOLE = "full"
"""The block of all parameters."""

_GROUP, _BLOCKS = "hessian", "hessian_blocks"  # two: a file store keeps "a/b" as a file b in a folder a
_REFUSED = re.compile(r"[^A-Za-z0-9_./ -]")  # by MLflow


def named(numbers: Mapping[str, float]) -> dict[str, float]:
    """Put numbers of the whole network under their names; those that are not finite are left out."""
    return {f"{_GROUP}/{key}": float(value) for key, value in numbers.items() if math.isfinite(value)}


def of_spectra(spectra: Spectra, top: int) -> dict[str, float]:
    """Return the numbers of some spectra, by name.

    Args:
        spectra: Those of blocks, the whole network among them under the name :data:`WHOLE`.
        top: How many of the largest eigenvalues to give, as far as they are known as single ones.
    """
    whole = spectra[WHOLE]
    trace = whole.trace()
    found = {**_largest(whole, top), "smallest": whole.smallest().value}
    found |= {"trace": trace.value, "trace_stderr": trace.stderr}
    parts = [spectrum for name, spectrum in spectra.items() if name != WHOLE]
    if not parts:
        return named(found)
    shown = _shown([part.name for part in parts])
    by_block: dict[str, Mapping[str, float]] = {
        "largest": {part.name: part.largest().value for part in parts},
        "smallest": {part.name: part.smallest().value for part in parts},
        "trace": {part.name: part.trace().value for part in parts},
    }
    if len(parts) > 1:
        apart = Spectra(parts, spectra.manifest)
        found["js0"] = apart.js0_estimate().value
        by_block["js"] = _values(apart.mean_js_estimates())
    return named(found) | {
        f"{_BLOCKS}/{key}/{shown[block]}": float(value)
        for key, values in by_block.items()
        for block, value in values.items()
        if math.isfinite(value)
    }


def _shown(blocks: Sequence[str]) -> dict[str, str]:
    """Return what every block is called in loggers, all of them otherwise; the same for the same blocks."""
    found: dict[str, str] = {}
    taken = {block for block in blocks if not _REFUSED.search(block)}  # these keep their names
    for block in blocks:
        name = plain = _REFUSED.sub("_", block)
        if block not in taken:
            number = count(2)
            while name in taken:
                name = f"{plain}_{next(number)}"
            taken.add(name)
        found[block] = name
    return found


def _largest(spectrum: Spectrum, top: int) -> dict[str, float]:
    """Return the largest eigenvalues; the first one is always known."""
    found = {"largest": spectrum.largest().value}
    for rank in range(2, min(top, spectrum.numel) + 1):
        try:
            found[f"largest_{rank}"] = spectrum.largest(rank).value
        except ConfigurationError:  # not told from its neighbours in so few steps
            break
    return found


def _values(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    return {name: estimate.value for name, estimate in estimates.items()}
