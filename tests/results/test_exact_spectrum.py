"""Spectra of which every eigenvalue is known, and what coefficients say after fewer steps."""

import numpy as np
import pytest

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.jacobi import jacobi_matrix
from hvp_engine.results.spectrum import Spectrum


@pytest.mark.parametrize("n", [1, 2, 3, 40, 129])
def test_the_jacobi_matrix_has_the_nodes_equally_weighted(n):
    nodes = np.sort(np.random.default_rng(n).normal(size=n))
    alphas, betas = jacobi_matrix(nodes)
    values, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
    assert np.allclose(values, nodes, rtol=0, atol=1e-13)
    assert np.allclose(vectors[0] ** 2, 1.0 / n, rtol=1e-9)
    assert (betas >= 0.0).all()


def test_repeated_eigenvalues_are_all_there():
    eigenvalues = np.repeat([-1.0, 0.0, 2.0], [3, 60, 1])
    spectrum = Spectrum.exact("b", 64, eigenvalues)
    assert np.allclose(spectrum.nodes[0], eigenvalues, rtol=0, atol=1e-13)
    assert spectrum.steps.tolist() == [64] and spectrum.residuals.tolist() == [0.0]
    assert np.isclose(spectrum.trace().value, -1.0)
    assert spectrum.is_quadrature


@pytest.mark.parametrize("eigenvalues", [[1.0], [1.0, np.nan], [[1.0, 2.0]]])
def test_other_than_all_eigenvalues_are_refused(eigenvalues):
    with pytest.raises(ConfigurationError, match="2 finite eigenvalues"):
        Spectrum.exact("b", 2, eigenvalues)


def test_truncated_coefficients_are_those_of_fewer_steps():
    rng = np.random.default_rng(0)
    alphas, betas = rng.normal(size=(3, 6)), rng.uniform(0.1, 1.0, size=(3, 5))
    spectrum = Spectrum.from_tridiagonal("b", 100, alphas, betas, [6, 2, 6], residuals=[0.5, 0.0, np.nan])
    cut = spectrum.coefficients.truncated(3)
    assert cut.steps.tolist() == [3, 2, 3]
    assert cut.residuals.tolist() == [betas[0, 2], 0.0, betas[2, 2]]
    assert np.array_equal(cut.alphas, spectrum.alphas[:, :3]) and np.array_equal(cut.betas, spectrum.betas[:, :2])
    assert spectrum.coefficients.truncated(6) is not cut and spectrum.coefficients.truncated(9).alphas.shape == (3, 6)
    assert spectrum.coefficients.of_probes(2).probes == 2


@pytest.mark.parametrize(
    "changes",
    [{"residuals": [-1.0]}, {"residuals": [1.0, 1.0]}, {"singles": [[1.0, 2.0]]}, {"singles": [[1, 2, np.inf]]}],
)
def test_what_streams_cannot_leave_is_refused(changes):
    with pytest.raises(ConfigurationError, match="residuals must|singles must"):
        Spectrum.from_tridiagonal("b", 9, [[1.0, 2.0]], [[0.5]], [2], **changes)
