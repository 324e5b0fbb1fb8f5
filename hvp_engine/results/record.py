"""The published numbers of a run as plain data and arrays, for its folder: what other programs read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from hvp_engine.errors import HvpEngineError
from hvp_engine.results.estimate import Estimate, MatrixEstimate
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.system.json_files import damaged
from hvp_engine.system.tensor_files import Layout

# No block has an empty name, so these are not arrays of a block.
MATRICES = ("/js", "/js_low", "/js_high")

# The numbers of a block by itself, by name.
OF_A_BLOCK: Mapping[str, Callable[[Spectrum], Estimate]] = {
    "trace": Spectrum.trace,
    "frobenius_norm": Spectrum.frobenius_norm,
    "smallest": Spectrum.smallest,
    "largest": Spectrum.largest,
    "outliers": Spectrum.outliers,
}

_T = TypeVar("_T")


def published(
    spectra: Mapping[str, Spectrum],
    js_estimate: Callable[[], MatrixEstimate],
    js0_estimate: Callable[[], Estimate],
    zero_blocks: Sequence[str],
) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """Gather the numbers with their bars.

    Args:
        spectra: One or more spectra.
        js_estimate: Gives their Jensen-Shannon divergences.
        js0_estimate: Gives the mean over pairs.
        zero_blocks: Names of the blocks without curvature.

    Returns:
        What goes into the manifest, where a number that there is not is None; and the divergences and their bars, by
        the names of ``MATRICES``.
    """
    js, js0 = _tried(js_estimate), _tried(js0_estimate)
    document = {
        "blocks": {
            name: {key: plain(_tried(partial(number, spectrum))) for key, number in OF_A_BLOCK.items()}
            for name, spectrum in spectra.items()
        },
        "js0": plain(js0),
        "zero_blocks": list(zero_blocks),
        "matrices": [] if js is None else list(MATRICES),
        "js_reading": None if js is None else js.reading,
    }
    return document, {} if js is None else dict(zip(MATRICES, (js.value, js.low, js.high), strict=True))


def layout(estimates: object, blocks: int) -> Layout:
    """Return dtype and shape of the matrices in a folder whose manifest has these estimates, perhaps none."""
    given = estimates.get("matrices") if isinstance(estimates, Mapping) else None
    names = MATRICES if given == list(MATRICES) else ()
    return dict.fromkeys(names, (torch.float64, (blocks, blocks)))


def plain(estimate: Estimate | None) -> dict[str, Any] | None:
    """Return an estimate as JSON can hold it: what is not finite is None."""
    if estimate is None:
        return None
    keys = ("value", "stderr", "low", "high")
    numbers = {key: float(getattr(estimate, key)) for key in keys}
    return {key: x if math.isfinite(x) else None for key, x in numbers.items()} | {"reading": estimate.reading}


def estimate_of(record: Any, path: Path) -> Estimate:
    """Return the estimate that :func:`plain` made plain data of; what is None there is nan.

    Args:
        record: The data.
        path: The file that it is from.

    Raises:
        RunFolderError: It is none.
    """
    match record:
        case {"value": value, "stderr": stderr, "low": low, "high": high, "reading": str(reading)}:
            numbers = [math.nan if x is None else x for x in (value, stderr, low, high)]
            if all(type(x) in (int, float) for x in numbers):
                found, error, lower, upper = map(float, numbers)
                return Estimate(found, error, lower, upper, reading)
    raise damaged(path, "a number with its bar is none")


def _tried(number: Callable[[], _T]) -> _T | None:
    """Compute a number, if it can be: what was found is worth saving without it."""
    try:
        with np.errstate(all="ignore"):  # numbers at the end of the range overflow, and are then not finite
            return number()
    except HvpEngineError:
        return None
