"""Spectra of random tridiagonal matrices, for what saves, draws and tabulates them."""

import numpy as np

from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum


def random_spectra(blocks=3, probes=3, scale=1.0, prefix="layer"):
    rng = np.random.default_rng(blocks)
    steps = np.array([5, 4, 5])[:probes]
    return Spectra(
        [
            Spectrum.from_tridiagonal(
                f"{prefix}.{i}/weight",
                1000 * (i + 1),
                scale * rng.normal(size=(probes, 5)),
                scale * rng.uniform(0.1, 1, size=(probes, 4)),
                steps,
            )
            for i in range(blocks)
        ],
        {"config": {"seed": 3, "precision": "fp64"}, "blocks": ["x"], "model": "µ"},  # keys as slq writes them
    )
