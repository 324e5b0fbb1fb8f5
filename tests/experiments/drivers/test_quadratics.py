"""D9 and D10: the figures of the specification to their digits, and claims that can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hvp_engine.experiments.drivers import constant_r, quadratics
from hvp_engine.experiments.quadratic_problem import Quadratics
from hvp_engine.experiments.registry import Setting, find
from hvp_engine.experiments.result import Result
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum


def spectra(setting: Setting, model: str, stage: str, seed: int) -> Spectra:
    """Seven blocks of known eigenvalues of both signs, which the network's would be."""
    generator = np.random.default_rng(len(model))
    return Spectra([Spectrum.exact(f"block {n}", 40, 10.0**n * generator.standard_normal(40)) for n in range(7)])


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr(quadratics.cache, "spectra", spectra)
    return quadratics.run(Setting("tiny", 1, tmp_path))


def test_cases_3_and_4_give_the_checked_figures_to_their_digits() -> None:
    drawn = Quadratics.drawn(quadratics.HETEROGENEOUS, 1000)
    descent, adam = drawn.gradient_descent.iterations(), drawn.adam.iterations()
    assert np.percentile(descent, (25, 50, 75)) == pytest.approx((31298, 32841, 33819), abs=1)
    assert np.percentile(adam, (25, 50, 75)) == pytest.approx((63, 124, 289), abs=1)
    assert float((adam < descent).mean()) == pytest.approx(0.998)
    assert float(np.median(drawn.adam.condition)) == pytest.approx(22, abs=0.5)
    drawn = Quadratics.drawn(quadratics.HOMOGENEOUS, 1000)
    descent, adam = drawn.gradient_descent.iterations(), drawn.adam.iterations()
    assert np.median(descent) == pytest.approx(32825, abs=1)
    assert np.percentile(adam, (50, 75)) == pytest.approx((50148, 104050), abs=1)
    assert np.sort(adam)[250] == pytest.approx(28827, abs=1)
    assert float((adam < descent).mean()) == pytest.approx(0.33)
    assert float(np.median(drawn.adam.condition)) == pytest.approx(8292, abs=1)


def test_at_tiny_size_every_claim_of_d9_holds_and_four_cases_are_listed(result: Result, tmp_path: Path) -> None:
    assert result.holds and len(result.claims) == 4
    assert [str(row[0])[:6] for row in result.table.rows] == ["case 1", "case 2", "case 3", "case 4"]
    result.write(tmp_path, find("D9"))
    assert (tmp_path / "claim.json").exists() and (tmp_path / "figure.png").exists()


def test_sampled_cases_keep_what_differs_between_blocks_and_have_the_condition_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quadratics.cache, "spectra", spectra)
    values = quadratics.sampled(Setting("tiny", 1, tmp_path), "gpt")
    assert values.shape == (4, 25) and values.min() == 1.0 and values.max() == pytest.approx(5000.0)
    assert np.median(values[3]) > 50.0 * np.median(values[2]) > 0.0
    assert np.array_equal(values, quadratics.sampled(Setting("tiny", 1, tmp_path), "gpt"))


def test_the_claims_of_d9_fail_where_adam_is_no_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quadratics.cache, "spectra", spectra)
    monkeypatch.setattr(quadratics, "HETEROGENEOUS", quadratics.HOMOGENEOUS)
    found = quadratics.run(Setting("tiny", 1, tmp_path))
    assert [claim.holds for claim in found.claims] == [False, False, True, True]


def test_d10_gives_the_checked_probability_and_no_draw_violates_the_theorem(tmp_path: Path) -> None:
    found = constant_r.run(Setting("tiny", 1, tmp_path))
    share, low, broken = (claim.values[0] for claim in found.claims)
    assert found.holds and share == pytest.approx(0.765) and 0.70 < low < share and broken == 0.0


def test_a_smaller_r_than_the_gradients_breaks_the_theorems_bound() -> None:
    drawn = Quadratics.drawn(quadratics.HETEROGENEOUS, 200)
    r = constant_r.ratios(drawn) ** 2
    assert constant_r.theorem_holds(drawn, r).all()
    assert not constant_r.theorem_holds(drawn, np.ones_like(r)).all()


def test_at_the_papers_size_d9_plans_the_spectra_of_gpt2_and_resnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quadratics, "planned_spectra", lambda setting, entry, runs: (entry.name, runs))
    assert quadratics.plan(Setting("paper", 1, tmp_path)) == [("gpt2", 1), ("resnet", 1)]
