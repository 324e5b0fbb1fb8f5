"""The same spectra to a tolerance: streams stop when they have found enough, more are started where needed.

Round 1 gives every block one stream, see :mod:`hvp_engine.krylov.adaptive`; small blocks are multiplied out. Further
rounds give more streams to the blocks that need them, all at once, each with as many steps as the block's first took.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hvp_engine.jobs.account import Taken, account, not_reached
from hvp_engine.jobs.runner import Job
from hvp_engine.jobs.slq import collected, orthogonality_facts, spectrum, start_vectors
from hvp_engine.krylov import stopping
from hvp_engine.krylov.adaptive import AdaptiveWave, Rule
from hvp_engine.krylov.lanczos import BatchedLanczos, Stream
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.krylov.stopping import Ceilings, Targets, Verdict
from hvp_engine.krylov.wave import Wave, WavePlan, Where
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.scheduling.expected import expected_products, is_better_exactly
from hvp_engine.scheduling.rounds import MATRIX, WHOLE, first_round, matrix_fits, round_sizes
from hvp_engine.scheduling.waves import StreamSizes

log = logging.getLogger(__name__)


class AdaptiveSlqJob(Job[Wave, Spectra]):
    """Spectra of every block, with error bars that are small enough."""

    name = "slq"

    def __init__(self, settings: JobSettings, targets: Targets) -> None:
        """Take the settings, whose steps and probes are ceilings.

        Args:
            settings: What was asked for.
            targets: What to reach.
        """
        super().__init__(settings)
        self.independent = targets.js is None  # that one is about pairs of blocks
        self._targets = targets
        self._exact: dict[str, Spectrum] = {}

    def products(self, operator: CurvatureOperator) -> dict[str, int]:
        """Return how many products of each block are expected."""
        return expected_products(operator.numel, self.settings)

    def streams(self, operator: CurvatureOperator) -> StreamSizes:
        """Return the sizes of the first streams: one per block, and none for the small ones."""
        self.settings.check_blocks(len(operator.numel))
        return first_round(operator.numel, self.settings, self.room)

    def more(self, operator: CurvatureOperator, states: Sequence[Wave]) -> StreamSizes | None:
        """Return the sizes of the streams that blocks still need; None where all have what they need, or may have.

        A block whose further streams would cost more products than its whole matrix, or that may get none, gets that in
        their place, where it costs no more than the ceilings allow.
        """
        found, singles = self._found(operator, states), self._singles(states)
        exact = self._exact_spectra(states)
        open_blocks = [block for block in found if block not in exact]
        verdicts = self._judged(open_blocks, found, singles, states)
        probes: dict[str, range] = {}
        for block in open_blocks:
            there, verdict = found[block], verdicts[block]
            if verdict.reached or verdict.reason:
                continue
            spent = int(there.steps.sum()) + len(singles[block])
            wanted = range(there.probes, min(self.settings.probes, verdict.probes))
            lacking = verdict.probes - there.probes if wanted else None
            exactly = is_better_exactly(there.numel, int(there.steps[0]), lacking, spent, self.settings)
            if exactly and matrix_fits(there.numel, self.settings, self.room):
                probes[block] = WHOLE
            elif wanted:
                probes[block] = wanted
        limits = {block: int(found[block].steps[0]) for block in probes}
        return round_sizes(operator.numel, self.settings, probes, limits) if probes else None

    def start(self, operator: CurvatureOperator, wave: list[Stream], finished: Sequence[Wave]) -> Wave:
        """Draw the start vectors of a wave."""
        settings, where = self.settings, Where(operator.dtype, operator.device)
        small = {block: operator.numel[block] for block, k in wave if k == MATRIX}
        starts = start_vectors(operator, [stream for stream in wave if stream[0] not in small], settings)
        lanczos = settings.lanczos.with_noise(self.noise)
        found = self._found(operator, finished)
        if any(block in found for block, _ in wave):
            limits = {block: int(found[block].steps[0]) for block in starts}
            return Wave(operator.sweep, WavePlan(starts, small, limits), lanczos, where)

        def judge(
            asked: Collection[str], blocks: Mapping[str, Coefficients], singles: Mapping[str, FloatArray]
        ) -> dict[str, Verdict]:
            return self._judged(asked, {**found, **blocks}, singles, [*finished, state], list(operator.numel))

        rule = Rule(judge, settings.seed, self.noise)
        state = AdaptiveWave(operator.sweep, WavePlan(starts, small, {}), lanczos, where, rule)
        return state

    def collect(self, operator: CurvatureOperator, states: list[Wave], manifest: dict[str, Any]) -> Spectra:
        """Collect what each block has, and say what it took and whether it is enough."""
        found, singles = self._found(operator, states), self._singles(states)
        spectra = self._exact_spectra(states)
        verdicts = self._judged([block for block in found if block not in spectra], found, singles, states)
        blocks: dict[str, dict[str, Any]] = {}
        for block, numel in operator.numel.items():
            taken = Taken(
                streams=int(found[block].steps.sum()) if block in found else 0,
                singles=len(singles.get(block, ())),
                exact=numel if block in spectra else 0,
            )
            if block not in spectra:
                deflated = int(found[block].steps[0]) - 1
                spectra[block] = spectrum(operator, block, found[block], singles=singles[block], deflated=deflated)
            blocks[block] = account(spectra[block], taken, verdicts.get(block), self.settings)
        adaptive = {"targets": self._targets.record(), "blocks": blocks}
        facts = orthogonality_facts(_streams(states), found, operator, manifest)
        notes = list(facts.get("notes", manifest.get("notes", [])))
        if (missing := not_reached(adaptive)) is not None:
            log.warning("%s", missing)
            notes.append(missing)
        facts |= {"notes": notes, "adaptive": adaptive}
        return Spectra([spectra[block] for block in operator.numel], {**manifest, **facts})

    def load(self, run: Path) -> Spectra:
        """Read the spectra of a finished run."""
        return Spectra.load(run)

    def _judged(
        self,
        asked: Collection[str],
        blocks: Mapping[str, Coefficients],
        singles: Mapping[str, FloatArray],
        states: Sequence[Wave],
        everything: Collection[str] = (),
    ) -> dict[str, Verdict]:
        """Judge some of the blocks, beside all others of which something is known, or of ``everything`` will be."""
        settings = self.settings
        most = settings.steps if settings.lanczos.kept is not None else 0
        known = {**blocks, **{name: found.coefficients for name, found in self._exact_spectra(states).items()}}
        ceilings, more_to_come = Ceilings(settings.probes, most), any(block not in known for block in everything)
        return stopping.judge(
            known,
            self._targets,
            singles,
            asked=asked,
            ceilings=ceilings,
            more_to_come=more_to_come,
            precision=settings.precision,
        )

    def _found(self, operator: CurvatureOperator, states: Sequence[Wave]) -> dict[str, Coefficients]:
        """Return what the streams of the finished waves found, by block in block order."""
        return collected(_streams(states), operator.numel, self.settings.lanczos.kept is not None, self.noise)

    def _singles(self, states: Sequence[Wave]) -> dict[str, FloatArray]:
        return {
            block: state.singles.of(block).numpy()
            for state in states
            if isinstance(state, AdaptiveWave)
            for block in state.coefficients()
        }

    def _exact_spectra(self, states: Sequence[Wave]) -> dict[str, Spectrum]:
        """Return the spectra of the blocks that are multiplied out by now."""
        for state in states:
            for block, matrix in state.matrices.items():
                if block not in self._exact and not matrix.left:
                    values, noise = matrix.eigenvalues(block)
                    self._exact[block] = Spectrum.exact(block, len(values), values.numpy(), noise)
        return dict(self._exact)


def _streams(states: Sequence[Wave]) -> list[BatchedLanczos]:
    """Return what ran the streams of some waves."""
    return [state.lanczos for state in states if state.lanczos is not None]
