"""How many products an adaptive job is expected to take, from sizes alone: engine and planner decide by these.

A stream's steps and a block's probes are found out as the job goes. What can be said before comes from two facts: once
the outliers are found, a block's bulk needs about fifty steps whatever its size; and what is left of the error falls
with the root of probes times parameters, so that small blocks take more probes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from hvp_engine.krylov.companions import SINGLES_AT_ONCE
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.krylov.stopping import Targets

EXPECTED_STEPS = 50
# Probes times parameters that a tolerance of 1 takes: twice the probe part of the error, for a bulk of one standard
# deviation, in W1; twice the spread of an entry, about 0.3 / sqrt(probes * parameters), in Jensen-Shannon divergences.
_W1, _JS = 10.0, 0.4
_MOST_EXACT = 2048  # rows of a matrix whose eigenvalues are computed at once


def expected_steps(numel: int, settings: JobSettings) -> int:
    """Return how many steps a stream is expected to take."""
    return min(numel, settings.steps, EXPECTED_STEPS)


def expected_probes(numel: int, settings: JobSettings) -> int:
    """Return how many streams a block is expected to get."""
    targets = settings.targets or Targets()
    needs = [law / tolerance**2 for law, tolerance in ((_W1, targets.w1), (_JS, targets.js)) if tolerance is not None]
    return min(settings.probes, max(1, math.ceil(max(needs, default=0.0) / numel)))


def is_exact(numel: int, settings: JobSettings) -> bool:
    """Say whether a block is so small that its whole matrix costs no more products than its streams would."""
    return settings.targets is not None and numel <= min(_MOST_EXACT, _products_of_streams(numel, settings))


def is_better_exactly(numel: int, steps: int, probes: int | None, spent: int, settings: JobSettings) -> bool:
    """Say whether a block that did not reach its tolerance gets its whole matrix rather than further streams.

    Args:
        numel: Length of its vectors.
        steps: Of each further stream.
        probes: How many further streams it needs, ceiling or not; None where it may get none.
        spent: Products that it has taken.
        settings: What was asked for: its ceilings hold for the whole matrix, too.
    """
    ceiling = settings.probes * min(settings.steps, numel) - spent
    streams = ceiling if probes is None or probes > settings.probes else probes * steps
    return numel <= min(_MOST_EXACT, ceiling, streams)


def expected_products(numel: Mapping[str, int], settings: JobSettings) -> dict[str, int]:
    """Return how many products each block is expected to take; what a fixed job takes.

    Args:
        numel: Length of each block's vectors.
        settings: What was asked for.
    """
    if settings.targets is None:
        return settings.products(numel)
    return {
        block: size if is_exact(size, settings) else _products_of_streams(size, settings)
        for block, size in numel.items()
    }


def _products_of_streams(numel: int, settings: JobSettings) -> int:
    singles = SINGLES_AT_ONCE if settings.lanczos.kept is not None else 0
    return expected_probes(numel, settings) * expected_steps(numel, settings) + singles
