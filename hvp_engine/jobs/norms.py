"""Gradient, Frobenius norm and trace of all blocks as a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvp_engine.jobs.sampled import SampledJob, SampledWave
from hvp_engine.krylov.sampling import Sampler
from hvp_engine.operators.gradients import gradient_norms
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.results.moments import root
from hvp_engine.results.norms import BlockNorms, Norms
from hvp_engine.results.words import relative_half_width


class NormsJob(SampledJob[Norms]):
    """Trace and norm from the same products."""

    name = "norms"
    norm = True

    def error(self, sampler: Sampler) -> float:
        """Return the wider of the bars of trace and norm, each relative to its value."""
        return max(relative_half_width(sampler.trace()), relative_half_width(root(sampler.square())))

    def collect(self, operator: CurvatureOperator, states: list[SampledWave], manifest: dict[str, Any]) -> Norms:
        """Estimate the numbers, and go over the data once more for the gradient."""
        samplers, gradients = self.ordered(operator, states), gradient_norms(operator)
        found = {
            block: BlockNorms(operator.numel[block], gradients[block], root(sampler.square()), sampler.trace())
            for block, sampler in samplers.items()
        }
        return Norms(found, operator.numel, {**manifest, **self.account(samplers, manifest["notes"])})

    def load(self, run: Path) -> Norms:
        """Read the numbers of a finished run."""
        return Norms.load(run)
