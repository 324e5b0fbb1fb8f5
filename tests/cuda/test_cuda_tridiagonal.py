"""The CUDA tridiagonal quadrature, run from its own source on the CPU, against dense eigendecompositions."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import ORDERS, tridiagonals

from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature_ref


@pytest.mark.parametrize(("num", "m"), [(1, 1), (2, 2), (5, 31), (33, 20), (70, 100), (3, 129)])
def test_it_agrees_with_the_reference(emulator, num, m):
    alphas, betas, steps = tridiagonals(num, m)
    nodes, weights = tridiagonal_quadrature_ref(alphas, betas, steps)
    found = emulator.tridiagonal_quadrature(alphas, betas, steps)
    assert found.failed == -1
    for s, n in enumerate(steps):
        scale = np.abs(nodes[s]).max()
        assert np.abs(found.nodes[s] - nodes[s]).max() <= 1e-13 * scale
        assert (np.diff(found.nodes[s, :n]) >= 0).all()
        assert (found.nodes[s, n:] == found.nodes[s, n - 1]).all()
        assert not found.weights[s, n:].any()
        assert found.weights[s].sum() == pytest.approx(1.0, abs=1e-14)
        # Single weights of close nodes are not determined; the moments that they give are.
        for power in range(4):
            moment = (weights[s] * (nodes[s] / scale) ** power).sum()
            assert (found.weights[s] * (found.nodes[s] / scale) ** power).sum() == pytest.approx(moment, abs=1e-13)


def test_three_orders_of_threads_give_equal_bits(emulator):
    alphas, betas, steps = tridiagonals(40, 25, seed=1)
    one, *others = [emulator.tridiagonal_quadrature(alphas, betas, steps, order=order) for order in ORDERS]
    for other in others:
        assert np.array_equal(one.nodes, other.nodes)
        assert np.array_equal(one.weights, other.weights)


def test_what_a_matrix_gives_does_not_depend_on_the_others(emulator):
    alphas, betas, steps = tridiagonals(40, 25, seed=2)
    together = emulator.tridiagonal_quadrature(alphas, betas, steps)
    alone = emulator.tridiagonal_quadrature(alphas[7:8], betas[7:8], steps[7:8])
    assert np.array_equal(together.nodes[7], alone.nodes[0])
    assert np.array_equal(together.weights[7], alone.weights[0])


def test_a_matrix_with_nan_is_named_as_the_first_that_failed(emulator):
    alphas, betas, steps = tridiagonals(40, 25, seed=3)
    steps[:] = 25
    alphas[[9, 35], 3] = np.nan
    assert emulator.tridiagonal_quadrature(alphas, betas, steps).failed == 9
