"""Figures of spectra and of their distances."""

import numpy as np
import pytest
from random_spectra import random_spectra

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
@pytest.mark.parametrize(("blocks", "probes", "scale"), [(1, 1, 1.0), (1, 3, 1e-9), (5, 3, 1e9)])
def test_figures_are_written(tmp_path, suffix, blocks, probes, scale):
    spectra = random_spectra(blocks, probes, scale, prefix="a.very.long.shared.prefix.of.the.modules")
    for draw, name in ((spectra.plot, "spectra"), (spectra.plot_js, "js")):
        draw(tmp_path / f"{name}.{suffix}")
        head = (tmp_path / f"{name}.{suffix}").read_bytes()[:8]
        assert head.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix])


def test_figure_of_a_zero_block_is_written(tmp_path):
    zero = Spectrum.from_tridiagonal("zero", 10, np.zeros((2, 1)), np.zeros((2, 0)), [1, 1])
    Spectra([zero]).plot(tmp_path / "zero.png")
    assert (tmp_path / "zero.png").stat().st_size > 1000


def test_figures_name_the_blocks_and_facts(tmp_path):
    random_spectra(3).plot(tmp_path / "s.svg")
    text = (tmp_path / "s.svg").read_text().replace("\u00a0", " ")
    for word in ("layer.2/weight", "n = 3,000", "4–5 Lanczos steps", "3 probes", "seed 3", "precision fp64"):
        assert word in text


def test_bad_figure_paths_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="image suffix"):
        random_spectra(1).plot(tmp_path / "figure.xyz")
    with pytest.raises(RunFolderError, match="could not be written"):
        random_spectra(1).plot(tmp_path / "missing" / "figure.png")
