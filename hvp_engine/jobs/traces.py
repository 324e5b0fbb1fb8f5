"""Traces of all blocks as a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvp_engine.jobs.sampled import SampledJob, SampledWave
from hvp_engine.krylov.sampling import Sampler
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.results.traces import Traces
from hvp_engine.results.words import relative_half_width


class TraceJob(SampledJob[Traces]):
    """By XTrace, or Hutchinson's estimator with vectors of the sphere."""

    name = "trace"

    def error(self, sampler: Sampler) -> float:
        """Return the half-width of the trace's bar, relative to the trace."""
        return relative_half_width(sampler.trace())

    def collect(self, operator: CurvatureOperator, states: list[SampledWave], manifest: dict[str, Any]) -> Traces:
        """Estimate the traces."""
        samplers = self.ordered(operator, states)
        found = {block: sampler.trace() for block, sampler in samplers.items()}
        return Traces(found, operator.numel, {**manifest, **self.account(samplers, manifest["notes"])})

    def load(self, run: Path) -> Traces:
        """Read the traces of a finished run."""
        return Traces.load(run)
