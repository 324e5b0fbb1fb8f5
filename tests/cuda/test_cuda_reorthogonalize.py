"""The CUDA reorthogonalisation, run from its own source on the CPU, against the PyTorch reference."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import BASIS_DTYPES, ORDERS, VECTOR_DTYPES, streams
from problems import same_dtype_projection
from rough_streams import DELAYED, RULES, rough_streams

from hvp_engine.kernels.reorthogonalize import reorthogonalize_ref

RAGGED = [(1, 0), (2, 1), (31, 7), (129, 33), (4097, 5), (9000, 12), (600, 64)]


@pytest.mark.parametrize("basis_dtype", BASIS_DTYPES)
@pytest.mark.parametrize("vector_dtype", VECTOR_DTYPES)
@pytest.mark.parametrize(("extra_columns", "lead"), [(0, 0), (3, 1)])
def test_its_error_is_at_most_twice_that_of_plain_pytorch(emulator, basis_dtype, vector_dtype, extra_columns, lead):
    bases, vectors, counts = streams(RAGGED, basis_dtype, vector_dtype, extra_columns=extra_columns)
    projection, results = emulator.reorthogonalize(bases, vectors, counts, lead=lead)
    floor = 16 * torch.finfo(torch.float64).eps  # the fp64 truth itself is rounded
    for s, count in enumerate(counts):
        truth, true_dots = same_dtype_projection(bases[s].double(), vectors[s].double(), count)
        plain, plain_dots = same_dtype_projection(bases[s], vectors[s], count)
        allowed = 2 * (plain - truth).norm() + floor * vectors[s].norm()
        assert (results[s] - truth).norm() <= allowed
        allowed = 2 * (plain_dots - true_dots).norm() + floor * vectors[s].norm()
        assert (projection.coefficients[s, :count] - true_dots).norm() <= allowed
        assert not projection.coefficients[s, count:].any()
        assert float(projection.norms[s]) == pytest.approx(float(results[s].double().norm()), rel=1e-13)


@pytest.mark.parametrize("basis_dtype", BASIS_DTYPES)
@pytest.mark.parametrize("vector_dtype", VECTOR_DTYPES)
def test_it_agrees_with_the_reference(emulator, basis_dtype, vector_dtype):
    bases, vectors, counts = streams(RAGGED[2:], basis_dtype, vector_dtype, seed=1)
    found, results = emulator.reorthogonalize(bases, vectors, counts)
    expected = reorthogonalize_ref(bases, vectors, counts)
    tolerance = 1e-11 if vector_dtype == torch.float64 else 2e-6
    for name in ("coefficients", "norms", "lost"):
        wanted = getattr(expected, name)
        torch.testing.assert_close(getattr(found, name), wanted, rtol=tolerance, atol=tolerance)
    for a, b in zip(results, vectors, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_rule_takes_out_what_the_reference_takes_out(emulator, name, dtype):
    rule, tolerance = RULES[name], 1e-5 if dtype == torch.float32 else 1e-11
    sizes = [(33, 0), (33, 2), (129, 9), (4500, 12)]
    (bases, vectors, counts), wanted = (rough_streams(sizes, dtype, dtype) for _ in range(2))
    found, results = emulator.reorthogonalize(bases, vectors, counts, rule)
    for a, b in zip(found, reorthogonalize_ref(*wanted, rule), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for a, b, count in zip(bases, wanted[0], counts, strict=True):
        torch.testing.assert_close(a[:count], b[:count], rtol=tolerance, atol=tolerance)
    for a, b in zip(results, wanted[1], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_rules_give_equal_bits_in_three_orders_of_threads(emulator):
    results = []
    for order in ORDERS:
        bases, vectors, counts = rough_streams([(129, 9), (4500, 12)], torch.float32, torch.float32)
        found, new = emulator.reorthogonalize(bases, vectors, counts, DELAYED, order=order)
        results.append((*found, *new, *(b[:c] for b, c in zip(bases, counts, strict=True))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("basis_dtype", BASIS_DTYPES)
def test_three_orders_of_threads_give_equal_bits(emulator, basis_dtype):
    bases, vectors, counts = streams([(1, 1), *RAGGED], basis_dtype, torch.float32, seed=2)
    (one, ones), *others = [emulator.reorthogonalize(bases, vectors, counts, order=order) for order in ORDERS]
    for projection, results in others:
        assert all(torch.equal(a, b) for a, b in zip((*one, *ones), (*projection, *results), strict=True))


def test_streams_of_different_types_share_one_batch(emulator):
    bases, vectors, counts = [], [], []
    for index, basis_dtype in enumerate(BASIS_DTYPES):
        for vector_dtype in VECTOR_DTYPES:
            group = streams([(40 + index, 3), (700, 6)], basis_dtype, vector_dtype, seed=index)
            for whole, part in zip((bases, vectors, counts), group, strict=True):
                whole.extend(part)
    found, results = emulator.reorthogonalize(bases, vectors, counts)
    expected = reorthogonalize_ref(bases, vectors, counts)
    torch.testing.assert_close(found.coefficients, expected.coefficients, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.norms, expected.norms, rtol=1e-6, atol=1e-6)
    for a, b in zip(results, vectors, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_nan_in_the_vector_shows_in_every_result(emulator):
    bases, vectors, counts = streams([(200, 3), (9000, 2)], torch.float32, torch.float32, seed=4)
    for vector in vectors:
        vector[7] = float("nan")
    projection, _ = emulator.reorthogonalize(bases, vectors, counts)
    assert projection.norms.isnan().all()
    assert projection.lost.isnan().all()


def test_a_zero_vector_stays_zero_and_loses_nothing(emulator):
    bases, vectors, counts = streams([(300, 5)], torch.float64, torch.float64, seed=5)
    projection, results = emulator.reorthogonalize(bases, [vectors[0].zero_()], counts)
    assert not results[0].any()
    assert float(projection.norms[0]) == float(projection.lost[0]) == 0.0
