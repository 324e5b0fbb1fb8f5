"""The figure of densities."""

from xml.etree import ElementTree

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
    spectra.plot(tmp_path / f"spectra.{suffix}")
    head = (tmp_path / f"spectra.{suffix}").read_bytes()[:8]
    assert head.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix])


def test_figure_of_a_zero_block_is_written(tmp_path):
    zero = Spectrum.from_tridiagonal("zero", 10, np.zeros((2, 1)), np.zeros((2, 0)), [1, 1])
    Spectra([zero]).plot(tmp_path / "zero.png")
    assert (tmp_path / "zero.png").stat().st_size > 1000


def test_figures_name_the_blocks_and_facts(tmp_path):
    random_spectra(3).plot(tmp_path / "s.svg")
    text = (tmp_path / "s.svg").read_text().replace("\u00a0", " ")
    facts = ("4–5 Lanczos steps", "3 probes", "seed 3", "precision fp64", "band: 95 %", "reading blended")
    for word in ("layer.2/weight", "n = 3,000", *facts):
        assert word in text


def test_figures_name_tolerance_and_readings(tmp_path):
    one = Spectrum.from_tridiagonal("a", 50, [[1.0, 2.0]], [[0.5]], [2], residuals=[0.3])
    small = Spectrum.exact("b", 3, [1.0, 2.0, 4.0])
    Spectra([one, small], {"config": {"tolerance": {"w1": 0.02, "js": 0.01}}}).plot(tmp_path / "s.svg")
    text = (tmp_path / "s.svg").read_text().replace("\u00a0", " ")
    for fact in ("2 Lanczos steps", "1 probe,", "tolerance w1=0.02 js=0.01", "reading blended and exact"):
        assert fact in text


def test_bad_figure_paths_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="image suffix"):
        random_spectra(1).plot(tmp_path / "figure.xyz")
    with pytest.raises(RunFolderError, match="could not be written"):
        random_spectra(1).plot(tmp_path / "missing" / "figure.png")


def drawn_of(kind, path):
    """Paths of the first collection of a kind in an SVG."""
    groups = [node for node in ElementTree.parse(path).iter() if node.get("id", "").startswith(f"{kind}Collection")]
    return [node for group in groups for node in group.iter() if node.tag.endswith(("}path", "}use"))]


def test_known_eigenvalues_are_ticked_and_bands_drawn_where_there_are_any(tmp_path):
    Spectra([Spectrum.exact("b", 5, [1.0, 2.0, 4.0, 8.0, 16.0])]).plot(tmp_path / "exact.svg")
    assert len(drawn_of("Line", tmp_path / "exact.svg")) == 5
    # Its last residual is not known.
    unknown = Spectrum.from_tridiagonal("a", 5000, [[1.0, 1.5, 2.0]], [[0.5, 0.5]], [3])
    Spectra([unknown]).plot(tmp_path / "unknown.svg")
    assert not drawn_of("Line", tmp_path / "unknown.svg")
    assert not np.isfinite(unknown.density_band().low).any()
    assert not drawn_of("FillBetweenPoly", tmp_path / "unknown.svg")
    known = random_spectra(1, probes=3)
    known.plot(tmp_path / "known.svg")
    assert np.isfinite(next(iter(known.values())).density_band().low).all()
    assert drawn_of("FillBetweenPoly", tmp_path / "known.svg")
