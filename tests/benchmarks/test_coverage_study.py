"""The study of error bars: its streams and single products are those of the matrices that it says they are of."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.coverage import matrices, stops, streams
from benchmarks.coverage.matrices import Matrix

SMALL = Matrix("small", np.array([-2.0, -0.5, 0.0, 0.3, 1.0, 1.5, 4.0]), np.array([1, 8, 20, 16, 9, 5, 1]))


def test_streams_have_the_moments_of_their_matrix() -> None:
    found = streams.run(SMALL, 400, 4, 0, seed=1)
    moments = found.alphas[:, 0], found.alphas[:, 0] ** 2 + found.betas[:, 0] ** 2
    for k, values in enumerate(moments, start=1):
        truth = SMALL.counts @ SMALL.values**k / SMALL.numel
        assert abs(values.mean() - truth) < 4.0 * values.std() / 20.0


def test_a_stream_ends_after_as_many_steps_as_there_are_distinct_eigenvalues() -> None:
    found = streams.run(SMALL, 3, 12, 0, seed=1)
    assert found.steps.tolist() == [7, 7, 7]
    nodes = streams.spectrum(SMALL, found, [0], 12, 0).nodes[0, :7]
    assert nodes == pytest.approx(SMALL.values, abs=1e-9)


def test_single_products_add_up_to_trace_and_norm_beside_the_stream() -> None:
    found = streams.run(SMALL, 400, 4, 2, seed=2)
    known = [streams.spectrum(SMALL, found, [row], 4, 2).reading.deflated for row in range(400)]
    for name, power in (("trace", 1), ("square", 2)):
        values = np.array([getattr(single, name) for single in known])
        assert abs(values.mean() - SMALL.counts @ SMALL.values**power) < 4.0 * values.std() / 20.0


def test_a_block_stops_within_its_tolerance() -> None:
    matrix = next(matrix for matrix in matrices.chosen() if matrix.numel > 400_000)
    found = streams.run(matrix, 10, 60, 4, seed=3)
    stop = stops.stop(matrix, stops.distribution(matrix), found, list(range(10)), 0.02)
    assert stop.reached and stop.error <= 0.02
    assert stop.products == stop.steps * stop.probes + stops.SINGLES < 100
