"""The same spectra to a tolerance: streams stop when they have found enough, and more are started where they are needed.

Round 1 gives every block one stream, see :mod:`hvp_engine.krylov.adaptive`; small blocks are multiplied out. Further
rounds give more streams to the blocks that need them, all at once, each with as many steps as the block's first took.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hvp_engine.jobs.account import account, not_reached
from hvp_engine.jobs.runner import Job
from hvp_engine.jobs.slq import collected, lost_orthogonality, spectrum, start_vectors
from hvp_engine.krylov import stopping
from hvp_engine.krylov.adaptive import AdaptiveWave, WavePlan
from hvp_engine.krylov.companions import COLUMNS_AT_ONCE, SINGLES_AT_ONCE
from hvp_engine.krylov.lanczos import BatchedLanczos, Stream
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.krylov.stopping import Targets, Verdict
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.scheduling.expected import expected_products, is_exact
from hvp_engine.scheduling.waves import WORK_VECTORS, StreamSizes

log = logging.getLogger(__name__)

State = AdaptiveWave | BatchedLanczos  # of round 1, and of further ones


class AdaptiveSlqJob(Job[State, Spectra]):
    """Spectra of every block, with error bars that are small enough."""

    name = "slq"

    def __init__(self, settings: JobSettings, targets: Targets) -> None:
        """Take the settings, whose steps and probes are ceilings.

        Args:
            settings: What was asked for.
            targets: What to reach.
        """
        super().__init__(settings)
        self._targets = targets
        self._exact: dict[str, Spectrum] = {}

    def products(self, operator: CurvatureOperator) -> dict[str, int]:
        """Return how many products of each block are expected."""
        return expected_products(operator.numel, self.settings)

    def streams(self, operator: CurvatureOperator) -> StreamSizes:
        """Return the sizes of the first streams: one per block, and none for the small ones."""
        item = operator.dtype.itemsize
        limits, beside = {}, {}
        for block, numel in operator.numel.items():
            if is_exact(numel, self.settings):
                limits[block], beside[block] = 0, (numel + 2 * COLUMNS_AT_ONCE) * numel * item
            else:  # single products have the place of the work vectors, whose stream has stopped
                beside[block] = max(0, 2 * SINGLES_AT_ONCE - WORK_VECTORS) * numel * item
        settings = self.settings
        return StreamSizes(
            operator.numel, settings.steps, 1, operator.dtype, settings.lanczos.kept, limits=limits, beside=beside
        )

    def more(self, operator: CurvatureOperator, states: Sequence[State]) -> StreamSizes | None:
        """Return the sizes of the streams that blocks still need; None where all have what they need, or may have."""
        found = self._found(operator, states)
        verdicts = self._judged(list(found), found, self._singles(states), states)
        wanted: dict[str, range] = {}
        for block, coefficients in found.items():
            most = min(self.settings.probes, verdicts[block].probes)
            if not verdicts[block].reached and most > coefficients.probes:
                wanted[block] = range(coefficients.probes, most)
        if not wanted:
            return None
        settings = self.settings
        return StreamSizes(
            {block: operator.numel[block] for block in wanted},
            settings.steps,
            wanted,
            operator.dtype,
            settings.lanczos.kept,
            limits={block: int(found[block].steps[0]) for block in wanted},
        )

    def start(self, operator: CurvatureOperator, wave: list[Stream], finished: Sequence[State]) -> State:
        """Draw the start vectors of a wave."""
        settings, numel = self.settings, operator.numel
        small = {block: numel[block] for block, _ in wave if is_exact(numel[block], settings)}
        starts = start_vectors(operator, [stream for stream in wave if stream[0] not in small], settings)
        if any(k > 0 for _, k in wave):
            found = self._found(operator, finished)
            limits = {block: int(found[block].steps[0]) for block in starts}
            return BatchedLanczos(
                operator.sweep, starts, settings.lanczos, operator.dtype, operator.device, limits=limits
            )
        earlier = self._found(operator, finished) if self._targets.js is not None else {}

        def judge(
            asked: Collection[str], blocks: Mapping[str, Coefficients], singles: Mapping[str, FloatArray]
        ) -> dict[str, Verdict]:
            return self._judged(asked, {**earlier, **blocks}, singles, finished)

        plan = WavePlan({block: probes[0] for block, probes in starts.items()}, small, settings.seed, {})
        return AdaptiveWave(operator.sweep, plan, settings.lanczos, judge, operator.dtype, operator.device)

    def collect(self, operator: CurvatureOperator, states: list[State], manifest: dict[str, Any]) -> Spectra:
        """Collect what each block has, and say what it took and whether it is enough."""
        found, singles = self._found(operator, states), self._singles(states)
        verdicts = self._judged(list(found), found, singles, states)
        spectra: dict[str, Spectrum] = self._exact_spectra(states)
        for block, coefficients in found.items():
            deflated = int(coefficients.steps[0]) - 1
            spectra[block] = spectrum(operator, block, coefficients, singles=singles[block], deflated=deflated)
        ordered = [spectra[block] for block in operator.numel]
        blocks = {s.name: account(s, verdicts.get(s.name), self.settings, self._targets) for s in ordered}
        adaptive = {"targets": self._targets.record(), "blocks": blocks}
        notes = list(manifest.get("notes", []))
        if (missing := not_reached(adaptive)) is not None:
            log.warning("%s", missing)
            notes.append(missing)
        return Spectra(
            ordered, {**manifest, "notes": notes, **lost_orthogonality(_streams(states)), "adaptive": adaptive}
        )

    def load(self, run: Path) -> Spectra:
        """Read the spectra of a finished run."""
        return Spectra.load(run)

    def _judged(
        self,
        asked: Collection[str],
        blocks: Mapping[str, Coefficients],
        singles: Mapping[str, FloatArray],
        finished: Sequence[State],
    ) -> dict[str, Verdict]:
        """Judge some blocks; the others count where it is the distances between blocks that are to be reached."""
        if self._targets.js is None:
            blocks = {block: blocks[block] for block in asked}
        else:
            blocks = {**blocks, **{name: s.coefficients for name, s in self._exact_spectra(finished).items()}}
        verdicts = stopping.judge(blocks, self._targets, singles)
        return {block: verdicts[block] for block in asked}

    def _found(self, operator: CurvatureOperator, states: Sequence[State]) -> dict[str, Coefficients]:
        full = self.settings.reorthogonalize == "full"
        return collected(_streams(states), operator.numel, full)

    def _singles(self, states: Sequence[State]) -> dict[str, FloatArray]:
        return {
            block: state.singles.of(block).numpy()
            for state in states
            if isinstance(state, AdaptiveWave) and state.lanczos is not None
            for block, _ in state.lanczos.streams
        }

    def _exact_spectra(self, states: Sequence[State]) -> dict[str, Spectrum]:
        """Return the spectra of the small blocks that are finished."""
        for state in states:
            for block, matrix in state.matrices.items() if isinstance(state, AdaptiveWave) else ():
                if block not in self._exact:
                    values, noise = matrix.eigenvalues(block)
                    self._exact[block] = Spectrum.exact(block, len(values), values.numpy(), noise)
        return dict(self._exact)


def _streams(states: Sequence[State]) -> list[BatchedLanczos]:
    """Return what ran the streams of some waves."""
    lanczos = [state.lanczos if isinstance(state, AdaptiveWave) else state for state in states]
    return [streams for streams in lanczos if streams is not None]
