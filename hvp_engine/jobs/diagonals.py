"""Diagonals of all blocks as a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hvp_engine.blocks import ResolvedBlock
from hvp_engine.jobs.sampled import SampledJob, SampledWave
from hvp_engine.krylov.sampling import Sampler
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.results.diagonals import Diagonal, Diagonals, Part, diagonal


class DiagonalJob(SampledJob[Diagonals]):
    """By XDiag, or the estimator of Bekas, Kokiopoulou & Saad (2007), with vectors of signs."""

    name = "diagonal"
    diagonal = True

    def error(self, sampler: Sampler) -> float:
        """Return twice the standard error of the whole diagonal's length, relative to that length."""
        return 2.0 * _found(sampler, [("", (sampler.of.numel,))]).error

    def collect(self, operator: CurvatureOperator, states: list[SampledWave], manifest: dict[str, Any]) -> Diagonals:
        """Put bars around the entries."""
        samplers = self.ordered(operator, states)
        found = {
            block: _found(sampler, _parts(operator.partition.blocks[block])) for block, sampler in samplers.items()
        }
        return Diagonals(found, operator.numel, {**manifest, **self.account(samplers, manifest["notes"])})

    def load(self, run: Path) -> Diagonals:
        """Read the diagonals of a finished run."""
        return Diagonals.load(run)


def _found(sampler: Sampler, parts: list[Part]) -> Diagonal:
    value, variance = map(torch.from_numpy, sampler.diagonal)
    noise = sampler.of.noise * sampler.norm()  # no entry is further off than its column
    return diagonal(value, variance, sampler.probes if variance.any() else None, noise, parts)


def _parts(block: ResolvedBlock) -> list[Part]:
    return [(part.parameter, tuple(part.shape)) for part in block.parts]
