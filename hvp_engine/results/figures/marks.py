"""Which eigenvalues a figure marks one by one, however little a density shows of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hvp_engine.results.estimate import Estimate
from hvp_engine.results.reading import Reading
from hvp_engine.results.smoothing import FloatArray

_LIGHT = 4.0  # eigenvalues: what a single one weighs in a random vector is less in 95 of 100
_SAME = 1e-3  # of the range, within which two probes have found the same eigenvalue


class Marks(NamedTuple):
    """What is marked of one block.

    Attributes:
        known: Values known to be one eigenvalue each, ascending.
        light: Other Ritz values of all probes that weigh about as much as one eigenvalue, or less.
        smallest: The smallest eigenvalue, as tables give it.
        largest: The largest one.
    """

    known: FloatArray
    light: FloatArray
    smallest: Estimate
    largest: Estimate


def marks_of(reading: Reading, smallest: Estimate, largest: Estimate) -> Marks:
    """Collect what is marked: single eigenvalues of all probes, each once, and what may be some.

    Args:
        reading: The block's coefficients.
        smallest: Its smallest eigenvalue.
        largest: Its largest one.
    """
    rule = reading.variance_reduced
    probes = len(rule.free)
    known = np.empty(0)
    near = _SAME * float(np.ptp(rule.nodes))
    for probe in np.argsort(rule.free, kind="stable"):  # that which knows most comes first
        own = rule.nodes[rule.accepted & (rule.probe == probe)]
        if known.size and own.size:
            own = own[np.abs(own[:, None] - known).min(axis=1) > near]
        known = np.concatenate((known, own))
    light = ~rule.accepted & (rule.weights * probes * rule.numel <= _LIGHT)
    return Marks(np.sort(known), np.sort(rule.nodes[light]), smallest, largest)
