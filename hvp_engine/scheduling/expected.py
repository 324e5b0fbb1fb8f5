"""How many products a job is expected to take, and at most, from sizes alone; engine and planner decide by these.

A fixed job takes what it was asked for. In an adaptive one a stream's steps and a block's probes are found out as it
goes. What can be said before comes from two facts: what steps leave of the error falls faster than their number grows,
at any size of the block; and what probes leave falls with the root of probes times parameters, so that small blocks
take more of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hvp_engine.krylov.companions import COLUMNS_AT_ONCE, SINGLES_AT_ONCE
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.krylov.stopping import CHECK_EVERY, DEFAULT_TOLERANCE, FIRST_CHECK, Targets

# Steps to the usual tolerance in W1, of small and of large blocks, and the power of its inverse by which they grow:
# what networks take (benchmarks/real_blocks; large blocks: 35 to 50 at 0.1, 40 to 80 at 0.05, 80 to 100 at 0.02).
# Other targets take about as many as the usual one.
_STEPS_SMALL, _STEPS_LARGE, _LARGE, _POWER = 50, 90, 1 << 14, 0.6
# Probes times parameters that a tolerance of 1 takes: twice the probe part of the error, for a bulk of one standard
# deviation, in W1; twice the spread of an entry, about 0.3 / sqrt(probes * parameters), in Jensen-Shannon divergences.
_W1, _JS = 10.0, 0.4
_MOST_EXACT = 2048  # rows of a matrix whose eigenvalues are computed at once


@dataclass(frozen=True)
class BlockWork:
    """What one block takes in a job.

    Attributes:
        probes: Streams; none of a block whose whole matrix is multiplied out.
        steps: Steps of each stream.
        first: Streams that start in the first round; the others start together when these have ended.
        singles: Single products with deflated vectors.
        columns: Columns of the matrix that is multiplied out.
    """

    probes: int
    steps: int
    first: int
    singles: int = 0
    columns: int = 0

    @property
    def products(self) -> int:
        """Products in all."""
        return self.probes * self.steps + self.singles + self.columns

    @property
    def sweeps(self) -> tuple[int, ...]:
        """Sweeps of each round that the block takes part in."""
        first = (self.steps if self.first else 0) + math.ceil(self.singles / SINGLES_AT_ONCE)
        first += math.ceil(self.columns / COLUMNS_AT_ONCE)
        return (first, self.steps) if self.probes > self.first else (first,)

    @property
    def vectors(self) -> int:
        """Vectors that the block has in a sweep, on average."""
        return max(1, round(self.products / max(1, sum(self.sweeps))))


def expected_work(numel: Mapping[str, int], settings: JobSettings) -> dict[str, BlockWork]:
    """Return what each block is expected to take.

    Args:
        numel: Length of each block's vectors.
        settings: What was asked for.
    """
    return _work(numel, settings, {block: _expected(size, settings) for block, size in numel.items()})


def most_work(numel: Mapping[str, int], settings: JobSettings) -> dict[str, BlockWork]:
    """Return what each block takes at most: all steps, probes and single products that it may get.

    Args:
        numel: Length of each block's vectors.
        settings: What was asked for.
    """
    singles = _singles(settings.steps, settings)
    streams = {
        block: BlockWork(settings.probes, min(settings.steps, size), 1, 0 if size <= settings.steps else singles)
        for block, size in numel.items()
    }
    return _work(numel, settings, streams)


def is_exact(numel: int, settings: JobSettings) -> bool:
    """Say whether a block is so small that its whole matrix costs no more products than its streams would."""
    return settings.targets is not None and numel <= min(_MOST_EXACT, _expected(numel, settings).products)


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
    """Return how many products each block is expected to take; arguments as for :func:`expected_work`."""
    return {block: work.products for block, work in expected_work(numel, settings).items()}


def _work(numel: Mapping[str, int], settings: JobSettings, streams: Mapping[str, BlockWork]) -> dict[str, BlockWork]:
    """Put what blocks take together: small ones their columns, others their streams, in a fixed job all at once."""
    if settings.targets is None:
        return {
            block: BlockWork(settings.probes, min(settings.steps, size), settings.probes)
            for block, size in numel.items()
        }
    return {
        block: BlockWork(0, 0, 0, columns=size) if is_exact(size, settings) else streams[block]
        for block, size in numel.items()
    }


def _expected(numel: int, settings: JobSettings) -> BlockWork:
    """Return what a block's streams are expected to take."""
    targets = settings.targets or Targets()
    needs = [law / tolerance**2 for law, tolerance in ((_W1, targets.w1), (_JS, targets.js)) if tolerance is not None]
    probes = min(settings.probes, max(1, math.ceil(max(needs, default=0.0) / numel)))
    ratio = DEFAULT_TOLERANCE / targets.w1 if targets.w1 is not None else 1.0
    usual = _STEPS_LARGE if numel > _LARGE else _STEPS_SMALL
    steps = max(FIRST_CHECK, round(usual * ratio**_POWER / CHECK_EVERY) * CHECK_EVERY)
    return BlockWork(probes, min(numel, settings.steps, steps), 1, _singles(SINGLES_AT_ONCE, settings))


def _singles(count: int, settings: JobSettings) -> int:
    return count if settings.reorthogonalize == "full" else 0
