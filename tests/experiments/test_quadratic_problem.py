"""The closed form of gradient descent and Adam on quadratics, against the steps themselves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import block_diag

from hvp_engine.experiments.quadratic_problem import Linear, Quadratics, adam_with_memory

SPECTRA = ((1.0, 2.0, 30.0), (4.0, 50.0, 100.0))


@pytest.fixture
def problems() -> Quadratics:
    return Quadratics.drawn(SPECTRA, 7)


def stepped(problems: Quadratics, seed: int, diagonal: np.ndarray, step: float, steps: int) -> list[float]:
    """Norms of the gradient along x <- x - step D^-1 H x, with the whole matrix."""
    matrix, x = block_diag(*problems.matrices[seed]), problems.starts[seed].ravel()
    norms = []
    for _ in range(steps + 1):
        gradient = matrix @ x
        norms.append(float(np.linalg.norm(gradient)))
        x = x - step * gradient / diagonal
    return norms


def test_the_matrices_have_the_eigenvalues_that_were_asked_for(problems: Quadratics) -> None:
    found = np.linalg.eigvalsh(problems.matrices)
    assert np.allclose(found, SPECTRA, rtol=1e-12)
    assert not np.allclose(problems.matrices[0], problems.matrices[1])


@pytest.mark.parametrize("name", ["gradient_descent", "adam"])
def test_norms_and_iterations_are_those_of_single_steps(problems: Quadratics, name: str) -> None:
    linear: Linear = getattr(problems, name)
    counts = linear.iterations()
    for seed in range(7):
        first = (problems.matrices[seed] @ problems.starts[seed][..., None]).ravel()
        diagonal = np.abs(first) if name == "adam" else np.ones(6)
        walked = stepped(problems, seed, diagonal, float(linear.step[seed]), int(counts[seed]))
        closed = [float(linear.norms(step)[seed]) for step in range(len(walked))]
        assert closed == pytest.approx(walked, rel=1e-6)
        assert walked[-1] <= 1e-6 * walked[0] < walked[-2]


def test_no_constant_step_contracts_faster_than_the_one_taken(problems: Quadratics) -> None:
    for linear in (problems.gradient_descent, problems.adam):
        taken = np.abs(linear.rates).max(axis=(1, 2))
        for factor in (0.99, 1.01):
            other = np.abs(1.0 - factor * linear.step[:, None, None] * linear.eigenvalues).max(axis=(1, 2))
            assert (other > taken).all()
        assert taken == pytest.approx((linear.condition - 1.0) / (linear.condition + 1.0))


def test_adam_that_forgets_nothing_is_the_closed_form_and_one_that_forgets_is_not(problems: Quadratics) -> None:
    closed = np.stack([problems.adam.norms(step) for step in range(41)], axis=1)
    assert np.allclose(adam_with_memory(problems, 1.0, 40), closed, rtol=1e-9)
    forgetful = adam_with_memory(problems, 0.9, 400)
    assert (forgetful[:, -100:].max(axis=1) > 1e-3 * forgetful[:, 0]).all()  # a cycle, not a minimum
