from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import quadratic, symmetric

import hvp_engine as he
from hvp_engine.experiments import slq_errors
from hvp_engine.experiments.drivers import slq_accuracy
from hvp_engine.experiments.registry import Setting

SIZES = slq_errors.Sizes((5, 10, 20, 100), (1, 2, 5, 10, 20), 20, 1)


@pytest.fixture(scope="module")
def known() -> tuple[np.ndarray, he.Spectrum, list[he.Spectrum]]:
    eigenvalues = torch.linspace(-1.0, 2.0, 200) ** 3
    problem = quadratic(symmetric(eigenvalues).float())
    options = {"data": None, "progress": False, "check": False}
    spectra = he.slq(problem.model, problem.loss, steps=SIZES.steps[-1], probes=SIZES.probes[-1], **options)
    repeats = [
        he.slq(problem.model, problem.loss, steps=5, probes=2, seed=seed, **options)["full"] for seed in range(20)
    ]
    return np.sort(eigenvalues.double().numpy()), spectra["full"], repeats


def test_tiny_run_finds_errors_of_chance_and_bars_that_hold(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits are in scikit-learn")
    result = slq_accuracy.run(Setting("tiny", 1, tmp_path))
    assert result.holds, [claim.line("D16") for claim in result.claims]
    assert len(result.table.rows) == 2 * 5 * 5


def test_fewer_steps_are_those_that_a_shorter_job_takes(
    known: tuple[np.ndarray, he.Spectrum, list[he.Spectrum]],
) -> None:
    problem = quadratic(symmetric(torch.linspace(-1.0, 2.0, 200) ** 3).float())
    short = he.slq(problem.model, problem.loss, steps=10, probes=20, progress=False, check=False)["full"]
    np.testing.assert_array_equal(slq_errors.shortened(known[1], 10).nodes, short.nodes)


def test_error_falls_with_probes_and_is_two_for_another_matrix(
    known: tuple[np.ndarray, he.Spectrum, list[he.Spectrum]],
) -> None:
    eigenvalues, spectrum, repeats = known
    right = slq_errors.comparison(SIZES, eigenvalues, spectrum, repeats)
    assert right.errors[-1, -1] < 0.5 * right.errors[-1, 0]
    assert right.covered >= 0.9
    wrong = slq_errors.comparison(SIZES, eigenvalues + 100.0, spectrum, repeats)
    np.testing.assert_allclose(wrong.errors, 2.0)
    assert wrong.covered == 0.0
    assert abs(slq_errors.slope(SIZES, wrong) + 0.5) > 0.15


def test_slope_is_that_of_a_power_law(known: tuple[np.ndarray, he.Spectrum, list[he.Spectrum]]) -> None:
    found = slq_errors.comparison(SIZES, *known)
    law = np.ones((4, 1)) * np.array(SIZES.probes) ** -0.7
    assert slq_errors.slope(SIZES, replace(found, errors=law)) == pytest.approx(-0.7)
