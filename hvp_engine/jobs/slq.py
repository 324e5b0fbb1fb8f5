"""Stochastic Lanczos quadrature as a job: random unit vectors start the streams, their T become spectra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvp_engine.jobs.runner import Job
from hvp_engine.krylov.ghosts import ghost_facts
from hvp_engine.krylov.lanczos import BatchedLanczos, Stream
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum


class SlqJob(Job[BatchedLanczos, Spectra]):
    """Spectra of every block (Golub & Meurant 2010; Ubaru, Chen & Saad 2017), by as many products as were asked for."""

    name = "slq"

    def start(
        self, operator: CurvatureOperator, wave: list[Stream], finished: Sequence[BatchedLanczos]
    ) -> BatchedLanczos:
        """Draw the start vectors of a wave."""
        starts = start_vectors(operator, wave, self.settings)
        settings = self.settings.lanczos.with_noise(self.noise)
        return BatchedLanczos(operator.sweep, starts, settings, operator.dtype, operator.device)

    def collect(self, operator: CurvatureOperator, states: list[BatchedLanczos], manifest: dict[str, Any]) -> Spectra:
        """Collect each block's streams from the waves and turn them into spectra."""
        settings = self.settings
        orthogonal = settings.lanczos.kept is not None
        found = collected(states, operator.numel, orthogonal, self.noise, settings.steps)
        spectra = [spectrum(operator, block, coefficients) for block, coefficients in found.items()]
        return Spectra(spectra, {**manifest, **orthogonality_facts(states, found, operator, manifest)})

    def load(self, run: Path) -> Spectra:
        """Read the spectra of a finished run."""
        return Spectra.load(run)


def start_vectors(
    operator: CurvatureOperator, wave: Iterable[Stream], settings: JobSettings
) -> dict[str, dict[int, Tensor]]:
    """Draw the probes of some streams, by block and number."""
    starts: dict[str, dict[int, Tensor]] = {}
    for block, k in wave:
        vector = probe(settings.seed, block, k, operator.numel[block], settings.distribution, operator.dtype)
        starts.setdefault(block, {})[k] = vector
    return starts


def collected(
    states: Iterable[BatchedLanczos],
    numel: Mapping[str, int],
    reorthogonalized: bool,
    noise: float,
    columns: int | None = None,
) -> dict[str, Coefficients]:
    """Bring the streams of each block together, in the order of their probes.

    Args:
        states: The waves that have streams of these blocks.
        numel: Length of the vectors of each block, in block order; blocks without a stream are left out.
        reorthogonalized: Whether the Lanczos vectors were kept orthogonal.
        noise: Relative error of one product.
        columns: Steps that the arrays have room for; None takes as many as the longest stream of a block has.
    """
    rows: dict[str, dict[int, tuple[Any, ...]]] = {}
    for lanczos in states:
        found = zip(lanczos.alphas, lanczos.betas, lanczos.steps, lanczos.residuals, strict=True)
        for (block, k), stream in zip(lanczos.streams, found, strict=True):
            rows.setdefault(block, {})[k] = stream
    blocks: dict[str, Coefficients] = {}
    for block in numel:
        if block in rows:
            alphas, betas, steps, residuals = map(
                np.array, zip(*(rows[block][k] for k in sorted(rows[block])), strict=True)
            )
            m = int(steps.max()) if columns is None else columns
            betas = np.where(np.arange(betas.shape[1]) < steps[:, None] - 1, betas, 0.0)  # without the residuals
            blocks[block] = Coefficients(
                numel[block], alphas[:, :m], betas[:, : m - 1], steps, residuals, noise, reorthogonalized
            )
    return blocks


def spectrum(operator: CurvatureOperator, block: str, found: Coefficients, **further: Any) -> Spectrum:
    """Turn the coefficients of a block into its spectrum, by the kernels of the operator's device."""
    return Spectrum.from_tridiagonal(
        block,
        found.numel,
        found.alphas,
        found.betas,
        found.steps,
        operator.device,
        residuals=found.residuals,
        noise=found.noise,
        reorthogonalized=found.reorthogonalized,
        **further,
    )


def orthogonality_facts(
    states: Sequence[BatchedLanczos],
    found: Mapping[str, Coefficients],
    operator: CurvatureOperator,
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a manifest says of the Lanczos vectors' orthogonality.

    That is the largest loss of it, the share of the steps that took components along all of the basis out, and where it
    was not kept what this must have done, in figures and as one more note.
    """
    lost = max((float(lanczos.orthogonality_loss.max()) for lanczos in states), default=0.0)
    steps = [int(lanczos.steps.sum()) for lanczos in states]
    reads = sum(lanczos.basis_reads * count for lanczos, count in zip(states, steps, strict=True)) / max(1, sum(steps))
    facts: dict[str, Any] = {"lost_orthogonality": lost, "basis_reads": reads}
    unprotected = {name: c for name, c in found.items() if not c.reorthogonalized}
    if unprotected:
        facts["ghosts"], words = ghost_facts(unprotected, float(torch.finfo(operator.dtype).eps))
        facts["notes"] = [*manifest.get("notes", []), *words]
    return facts
