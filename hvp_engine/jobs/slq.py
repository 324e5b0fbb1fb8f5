"""Stochastic Lanczos quadrature as a job: random unit vectors start the streams, their T become spectra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hvp_engine.jobs.runner import Job
from hvp_engine.krylov.lanczos import BatchedLanczos, Stream
from hvp_engine.krylov.probes import probe
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.operators.verification import product_noise
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum


class SlqJob(Job[BatchedLanczos, Spectra]):
    """Spectra of every block (Golub & Meurant 2010; Ubaru, Chen & Saad 2017)."""

    name = "slq"

    def start(
        self, operator: CurvatureOperator, wave: list[Stream], finished: Sequence[BatchedLanczos]
    ) -> BatchedLanczos:
        """Draw the start vectors of a wave."""
        settings = self.settings
        starts: dict[str, dict[int, Tensor]] = {}
        for block, k in wave:
            vector = probe(settings.seed, block, k, operator.numel[block], settings.distribution, operator.dtype)
            starts.setdefault(block, {})[k] = vector
        return BatchedLanczos(operator.sweep, starts, settings.lanczos, operator.dtype, operator.device)

    def collect(self, operator: CurvatureOperator, states: list[BatchedLanczos], manifest: dict[str, Any]) -> Spectra:
        """Collect each block's streams from the waves and turn them into spectra."""
        probes, most = self.settings.probes, self.settings.steps
        noise = product_noise(manifest["verification"], self.settings.precision)
        spectra: list[Spectrum] = []
        for block, numel in operator.numel.items():
            alphas = np.zeros((probes, most))
            betas = np.zeros((probes, most - 1))
            steps, residuals = np.zeros(probes, dtype=np.int64), np.zeros(probes)
            for lanczos in states:
                for s, (name, k) in enumerate(lanczos.streams):
                    if name == block:
                        alphas[k], betas[k] = lanczos.alphas[s], lanczos.betas[s, : most - 1]
                        steps[k], residuals[k] = lanczos.steps[s], lanczos.residuals[s]
            spectra.append(
                Spectrum.from_tridiagonal(
                    block,
                    numel,
                    alphas,
                    betas,
                    steps,
                    operator.device,
                    residuals=residuals,
                    noise=noise,
                    reorthogonalized=self.settings.reorthogonalize == "full",
                )
            )
        loss = max(float(lanczos.orthogonality_loss.max()) for lanczos in states)
        return Spectra(spectra, {**manifest, "lost_orthogonality": loss})

    def load(self, run: Path) -> Spectra:
        """Read the spectra of a finished run."""
        return Spectra.load(run)
