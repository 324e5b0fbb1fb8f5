from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature, tridiagonal_quadrature_ref

EVERY_M = (1, 2, 3, 15, 16, 17, 31, 129, 300)


@pytest.fixture(autouse=True)
def native_backend(monkeypatch):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "native")


def families(m, rng):
    """Alphas and betas, one matrix per kind of difficulty."""
    grade = 10.0 ** -np.linspace(0, 14, m)
    wilkinson = np.abs(np.arange(m) - (m - 1) / 2)
    some_zero = np.where(rng.random(m - 1) < 0.3, 0.0, rng.random(m - 1))
    pairs = [
        (rng.normal(size=m), rng.normal(size=m - 1)),
        (grade * rng.normal(size=m), grade[1:] * rng.normal(size=m - 1)),
        (grade[::-1] * rng.normal(size=m), grade[:-1][::-1] * rng.normal(size=m - 1)),
        (rng.normal(size=m), some_zero),
        (rng.normal(size=m), np.zeros(m - 1)),
        (rng.normal(size=m), 10.0 ** rng.uniform(-200, -8, m - 1)),
        (np.zeros(m), np.ones(m - 1)),
        (np.zeros(m), 10.0 ** rng.uniform(-300, 0, m - 1)),
        (np.zeros(m), np.zeros(m - 1)),
        (np.ones(m), np.full(m - 1, 1e-9)),
        (np.full(m, -3.0), np.zeros(m - 1)),
        (wilkinson, np.ones(m - 1)),
        (np.where(np.arange(m) % 2 == 0, 1.0, -1.0), np.full(m - 1, 1e-5)),
    ]
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs]).reshape(len(pairs), m - 1)


def norm_of(alpha, beta):
    return max(np.abs(alpha).max(), np.abs(beta).max(initial=0.0))


@pytest.mark.parametrize("m", EVERY_M)
def test_nodes_match_scipy_and_weights_match_the_moments(m):
    alphas, betas = families(m, np.random.default_rng(m))
    nodes, weights = tridiagonal_quadrature(alphas, betas, np.full(len(alphas), m))
    for alpha, beta, node, weight in zip(alphas, betas, nodes, weights, strict=True):
        norm = norm_of(alpha, beta)
        truth = scipy.linalg.eigh_tridiagonal(alpha, beta, eigvals_only=True)
        assert np.all(np.diff(node) >= 0)
        assert np.abs(node - truth).max() <= 1e-12 * norm
        assert weight.min() >= 0 and weight.sum() == pytest.approx(1.0, abs=1e-13)
        start = np.eye(m)[0]
        power, dense = start, np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1)
        for k in range(1, min(2 * m, 9)):
            power = dense @ power
            assert abs(weight @ node**k - start @ power) <= 1e-12 * (3 * norm) ** k


@pytest.mark.parametrize("m", [2, 5, 40])
def test_weights_match_scipy_where_nodes_are_separated(m):
    rng = np.random.default_rng(7)
    alphas, betas = np.arange(m) * 3.0 + rng.random((20, m)), rng.random((20, m - 1))
    nodes, weights = tridiagonal_quadrature(alphas, betas, np.full(20, m))
    for s in range(20):
        truth, vectors = scipy.linalg.eigh_tridiagonal(alphas[s], betas[s])
        np.testing.assert_allclose(nodes[s], truth, rtol=0, atol=1e-12 * 3 * m)
        np.testing.assert_allclose(weights[s], vectors[0] ** 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("exponent", [-300, -160, 160, 300])
def test_scaling_by_extreme_factors_only_scales_the_nodes(exponent):
    rng = np.random.default_rng(8)
    alphas, betas = rng.normal(size=(3, 30)), rng.normal(size=(3, 29))
    factor = 2.0 ** round(exponent * np.log2(10))
    nodes, weights = tridiagonal_quadrature(alphas, betas, np.full(3, 30))
    scaled, scaled_weights = tridiagonal_quadrature(alphas * factor, betas * factor, np.full(3, 30))
    assert np.array_equal(scaled, nodes * factor)
    assert np.array_equal(scaled_weights, weights)


def test_ragged_steps_read_only_their_part_and_repeat_the_largest_node():
    rng = np.random.default_rng(9)
    m, num = 50, 70
    alphas, betas = rng.normal(size=(num, m)), rng.normal(size=(num, m - 1))
    steps = rng.integers(1, m + 1, num)
    steps[:2] = 1, m
    for s, n in enumerate(steps):
        alphas[s, n:] = np.nan
        betas[s, n - 1 :] = np.inf
    nodes, weights = tridiagonal_quadrature(alphas, betas, steps)
    expected_nodes, expected_weights = tridiagonal_quadrature_ref(alphas, betas, steps)
    np.testing.assert_allclose(nodes, expected_nodes, rtol=0, atol=1e-12 * 5)
    for s, n in enumerate(steps):
        assert np.all(nodes[s, n:] == nodes[s, n - 1])
        assert np.all(weights[s, n:] == 0)
        for k in range(1, 6):
            found, expected = weights[s] @ nodes[s] ** k, expected_weights[s] @ expected_nodes[s] ** k
            assert found == pytest.approx(expected, abs=1e-11 * 5**k)


def test_what_a_matrix_gives_does_not_depend_on_its_neighbours_or_threads():
    rng = np.random.default_rng(10)
    alphas, betas = rng.normal(size=(100, 40)), rng.normal(size=(100, 39))
    steps = rng.integers(1, 41, 100)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        nodes, weights = tridiagonal_quadrature(alphas, betas, steps)
        torch.set_num_threads(1)
        for s in range(0, 100, 9):
            node, weight = tridiagonal_quadrature(alphas[s : s + 1], betas[s : s + 1], steps[s : s + 1])
            assert np.array_equal(node[0], nodes[s])
            assert np.array_equal(weight[0], weights[s])
    finally:
        torch.set_num_threads(before)


def test_no_matrices_give_empty_results():
    nodes, weights = tridiagonal_quadrature(np.empty((0, 3)), np.empty((0, 2)), np.empty(0, np.int64))
    assert nodes.shape == weights.shape == (0, 3)


@pytest.mark.parametrize(
    ("alphas", "betas", "steps", "message"),
    [
        (np.ones(3), np.ones(2), [3], "give \\(matrices, m\\)"),
        (np.ones((2, 3)), np.ones((2, 3)), [3, 3], "do not fit"),
        (np.ones((2, 3)), np.ones((2, 2)), [3], "do not fit"),
        (np.ones((2, 3)), np.ones((2, 2)), [3, 4], r"steps\[1\] is 4"),
        (np.ones((2, 3)), np.ones((2, 2)), [0, 3], r"steps\[0\] is 0"),
        (np.array([[1.0, np.nan]]), np.ones((1, 1)), [2], "matrix 0 has a NaN or infinite entry"),
        (np.ones((2, 2)), np.array([[1.0], [np.inf]]), [2, 2], "matrix 1 has a NaN or infinite entry"),
    ],
)
def test_bad_input_is_refused_with_its_cause(alphas, betas, steps, message):
    for function in (tridiagonal_quadrature, tridiagonal_quadrature_ref):
        with pytest.raises(ConfigurationError, match=message):
            function(alphas, betas, np.array(steps))


@pytest.mark.parametrize("wish", ["cuda", "triton"])
def test_a_wish_for_a_gpu_backend_does_not_stop_the_quadrature_on_the_host(monkeypatch, wish):
    arguments = (np.ones((2, 3)), np.full((2, 2), 0.5), np.array([3, 2]))
    nodes, weights = tridiagonal_quadrature(*arguments)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    again_nodes, again_weights = tridiagonal_quadrature(*arguments)
    assert np.array_equal(nodes, again_nodes)
    assert np.array_equal(weights, again_weights)
