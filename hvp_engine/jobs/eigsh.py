"""Eigenpairs of every block as a job: all blocks advance together, and leave the sweeps as they converge."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvp_engine.jobs.identity import describe_blocks
from hvp_engine.jobs.runner import Job
from hvp_engine.krylov.eigen_stream import AT_ONCE, EigenStream, Start
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.krylov.registry import Storage
from hvp_engine.krylov.restart import RestartedLanczos
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.krylov.wanted import Wanted
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.results.eigenpairs import Effort, Eigenpairs, Piece
from hvp_engine.results.eigensystem import Eigensystem
from hvp_engine.scheduling.policy import choose_restart_size
from hvp_engine.scheduling.waves import WORK_VECTORS, StreamSizes
from hvp_engine.system.formatting import first_names, format_number

log = logging.getLogger(__name__)

# Of what a block with outliers takes, by experience: as many products per pair, and in any case.
_EXPECTED, _EXPECTED_PER_PAIR = 30, 4


class EigshJob(Job[RestartedLanczos, Eigensystem]):
    """The wanted eigenpairs of every block."""

    name = "eigsh"

    def __init__(self, settings: JobSettings, wanted: Wanted) -> None:
        """Take the settings.

        Args:
            settings: What every job is asked for.
            wanted: What this one is asked for.
        """
        super().__init__(settings)
        self._wanted = wanted

    def config(self) -> dict[str, Any]:
        """Return what decides the job's numbers."""
        shared = ("seed", "precision", "head_curvature", "head_curvature_tolerance")
        record = self.settings.record()
        return {**self._wanted.record(), **{key: record[key] for key in shared}}

    def products(self, operator: CurvatureOperator) -> dict[str, int]:
        """Return about how many products of each block the job will ask for."""
        expected = _EXPECTED + _EXPECTED_PER_PAIR * self._wanted.k
        return {block: min(expected, size + self._wanted.of(size)) for block, size in operator.numel.items()}

    def streams(self, operator: CurvatureOperator) -> StreamSizes:
        """Return the sizes of the streams, one per block, each with as many vectors as there is room for."""
        item, wanted = operator.dtype.itemsize, self._wanted
        # Beside the vectors: those that are measured at once with their products, or the wanted ones once more.
        beside = {
            block: max(0, 2 * AT_ONCE - WORK_VECTORS, wanted.of(size) - WORK_VECTORS) * size * item
            for block, size in operator.numel.items()
        }
        results = sum(wanted.of(size) * size * item for size in operator.numel.values()) if wanted.vectors else 0
        return StreamSizes(
            operator.numel,
            wanted.most,
            1,
            operator.dtype,
            Storage(operator.dtype),
            limits={
                block: choose_restart_size(
                    wanted.of(size), size, self.room - results - beside[block] - WORK_VECTORS * size * item, item
                )
                for block, size in operator.numel.items()
            },
            beside=beside,
            results=results,
            savings="a smaller k, vectors=False, ",
        )

    def start(
        self, operator: CurvatureOperator, wave: list[Stream], finished: Sequence[RestartedLanczos]
    ) -> RestartedLanczos:
        """Draw the start vectors of a wave."""
        sizes, seed = self.streams(operator), self.settings.seed
        streams: dict[str, EigenStream] = {}
        for block, _ in wave:
            numel = operator.numel[block]
            start = Start(block, numel, sizes.limits[block], seed, self.noise, operator.dtype, operator.device)
            streams[block] = EigenStream(start, self._wanted)
        return RestartedLanczos(operator.sweep, streams)

    def collect(
        self, operator: CurvatureOperator, states: list[RestartedLanczos], manifest: dict[str, Any]
    ) -> Eigensystem:
        """Collect the pairs of each block, and say what was not reached."""
        streams = {block: stream for state in states for block, stream in state.streams.items()}
        names = describe_blocks(operator.partition)
        found: list[Eigenpairs] = []
        for name, block in operator.partition.blocks.items():
            shapes = (tuple(part.shape) for part in block.parts)
            pieces = tuple(Piece(*piece) for piece in zip(names[name], shapes, strict=True))
            found.append(_eigenpairs(streams[name], self._wanted, pieces))
        notes = [*manifest.get("notes", []), *self._notes(found)]
        return Eigensystem(found, {**manifest, "notes": notes, "noise": self.noise})

    def load(self, run: Path) -> Eigensystem:
        """Read the eigenpairs of a finished run."""
        return Eigensystem.load(run)

    def _notes(self, found: Sequence[Eigenpairs]) -> list[str]:
        """Put into words what was not reached."""
        missed = [pairs for pairs in found if not pairs.converged.all()]
        if not missed:
            return []
        worst = max(float(pairs.residuals.max()) / pairs.size if pairs.size else math.inf for pairs in missed)
        fixes = {
            "noise": f"the error of a product, {format_number(self.noise, 2)}, admits no less: use a finer precision=",
            "maxiter": "raise maxiter=",
        }
        why = [fix for ending, fix in fixes.items() if any(pairs.effort.ended_by == ending for pairs in missed)]
        note = (
            f"The tolerance {self._wanted.tolerance:g} was not reached in {len(missed)} of {len(found)} blocks "
            f"({first_names([pairs.name for pairs in missed])}), whose largest residual is {format_number(worst, 2)}: "
            f"{', or '.join(why)}, or ask for a larger tolerance."
        )
        log.warning("%s", note)
        return [note]


def _eigenpairs(stream: EigenStream, wanted: Wanted, pieces: Sequence[Piece]) -> Eigenpairs:
    """Collect what a finished stream found, in ascending order of the values that were measured."""
    values, residuals = stream.values.numpy().copy(), stream.residuals.numpy().copy()
    order = np.argsort(values, kind="stable")
    stored = stream.space.store.cpu() if wanted.vectors else None
    if stored is not None and not np.array_equal(order, np.arange(len(order))):
        stored = stored[torch.from_numpy(order)]
    return Eigenpairs(
        stream.start.block,
        stream.start.numel,
        wanted.which,
        values[order],
        residuals[order],
        float(wanted.tolerance),
        float(stream.size),
        Effort(stream.spent, stream.effort, stream.ended_by),
        pieces,
        stored,
    )
