"""The Triton reorthogonalisation under the interpreter, against fp64 and the plain PyTorch reference."""

from __future__ import annotations

import pytest
import torch
from problems import same_dtype_projection
from rough_streams import RULES, rough_streams

from hvp_engine.kernels.reorthogonalize import reorthogonalize, reorthogonalize_ref
from hvp_engine.kernels.scaled_rows import row_bytes, scaled_rows

pytestmark = pytest.mark.usefixtures("on_triton")

SIZES = (1, 2, 31, 129, 1040, 4097)
COUNTS = (0, 1, 8, 9, 12, 17)
BASIS_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
VECTOR_DTYPES = (torch.float32, torch.float64)


def make_streams(basis_dtype, vector_dtype, sizes=SIZES, counts=COUNTS):
    """Orthonormal rows, rounded; the rows that are not in use are NaN."""
    torch.manual_seed(0)
    bases, vectors = [], []
    for n, count in zip(sizes, counts, strict=True):
        basis = torch.full((count + 2, n), float("nan"), dtype=basis_dtype)
        basis[:count] = torch.linalg.qr(torch.randn(n, count, dtype=torch.float64))[0].T
        bases.append(basis)
        vectors.append(torch.randn(n, dtype=torch.float64).to(vector_dtype))
    return bases, vectors, list(counts)


def project(guard, bases, vectors, counts):
    guard.reach(*(b[:c] for b, c in zip(bases, counts, strict=True)), *vectors)
    return reorthogonalize(bases, vectors, counts)


@pytest.mark.parametrize("basis_dtype", BASIS_DTYPES)
@pytest.mark.parametrize("vector_dtype", VECTOR_DTYPES)
def test_the_error_is_at_most_twice_that_of_plain_pytorch(interpreter, basis_dtype, vector_dtype):
    bases, vectors, counts = make_streams(basis_dtype, vector_dtype)
    before = [v.clone() for v in vectors]
    projection = project(interpreter, bases, vectors, counts)
    floor = 16 * torch.finfo(torch.float64).eps
    for s, count in enumerate(counts):
        truth, true_dots = same_dtype_projection(bases[s].double(), before[s].double(), count)
        plain, plain_dots = same_dtype_projection(bases[s], before[s], count)
        assert (vectors[s] - truth).norm() <= 2 * (plain - truth).norm() + floor * before[s].norm()
        allowed = 2 * (plain_dots - true_dots).norm() + floor * before[s].norm()
        assert (projection.coefficients[s, :count] - true_dots).norm() <= allowed
        assert not projection.coefficients[s, count:].any()
        assert float(projection.norms[s]) == pytest.approx(float(vectors[s].double().norm()), rel=1e-13)


@pytest.mark.parametrize("vector_dtype", VECTOR_DTYPES)
def test_rows_of_8_bits_are_read_as_what_they_stand_for(interpreter, vector_dtype):
    plain, vectors, counts = make_streams(torch.float32, vector_dtype)
    bases = [
        torch.full((count + 2, row_bytes(basis.shape[1])), 0x7E).to(torch.int8)
        for basis, count in zip(plain, counts, strict=True)
    ]
    for basis, rows, count in zip(bases, plain, counts, strict=True):
        for row, target in zip(rows[:count], basis, strict=False):
            scaled_rows(row, target)
    wanted = [vector.clone() for vector in vectors]
    expected = reorthogonalize_ref(bases, wanted, counts)
    found = project(interpreter, bases, vectors, counts)
    for name in ("coefficients", "norms", "lost"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(vectors, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_rule_takes_out_what_the_reference_takes_out(interpreter, name, dtype):
    rule, tolerance = RULES[name], 1e-5 if dtype == torch.float32 else 1e-11
    sizes = [(33, 0), (33, 2), (129, 9), (1300, 12)]
    (bases, vectors, counts), wanted = (rough_streams(sizes, dtype, dtype) for _ in range(2))
    interpreter.reach(*(b[:c] for b, c in zip(bases, counts, strict=True)), *vectors)
    found = reorthogonalize(bases, vectors, counts, rule)
    for a, b in zip(found, reorthogonalize_ref(*wanted, rule), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for a, b, count in zip(bases, wanted[0], counts, strict=True):
        torch.testing.assert_close(a[:count], b[:count], rtol=tolerance, atol=tolerance)
    for a, b in zip(vectors, wanted[1], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_streams_of_all_types_in_one_call_match_the_reference(interpreter):
    pairs = [(b, v) for b in BASIS_DTYPES for v in VECTOR_DTYPES]
    streams = [make_streams(b, v, (40 + i,), (i,)) for i, (b, v) in enumerate(pairs)]
    bases, vectors, counts = ([x for s in streams for x in s[part]] for part in range(3))
    bases[3][1] += 1e-3 * bases[3][0]  # some orthogonality to be lost
    plain = [v.clone() for v in vectors]
    expected = reorthogonalize_ref(bases, plain, counts)
    found = project(interpreter, bases, vectors, counts)
    for name in ("coefficients", "norms", "lost"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vectors, plain, rtol=1e-5, atol=1e-6)


def test_what_a_stream_gives_does_not_depend_on_the_others(interpreter):
    among = make_streams(torch.float32, torch.float32)
    together = project(interpreter, *among)
    for s in (2, 5):
        bases, vectors, counts = ([part[s]] for part in make_streams(torch.float32, torch.float32))
        alone = project(interpreter, bases, vectors, counts)
        assert torch.equal(vectors[0], among[1][s])
        assert torch.equal(alone.coefficients[0], together.coefficients[s, : counts[0]])
        assert torch.equal(alone.norms[0], together.norms[s])


def test_zero_vectors_stay_zero_and_a_nan_shows_in_every_result(interpreter):
    bases, vectors, counts = make_streams(torch.float32, torch.float32, (200, 300), (3, 3))
    vectors[0].zero_()
    vectors[1][7] = float("nan")
    projection = project(interpreter, bases, vectors, counts)
    assert projection.norms[0] == projection.lost[0] == 0.0
    assert projection.norms[1].isnan()
    assert projection.lost[1].isnan()


def test_without_rows_only_the_norm_is_taken(interpreter):
    basis, vector = torch.randn(3, 50), torch.randn(50)
    before = vector.clone()
    projection = project(interpreter, [basis], [vector], [0])
    assert torch.equal(vector, before)
    assert projection.coefficients.shape == (1, 0)
    assert float(projection.norms[0]) == pytest.approx(float(before.double().norm()))
    assert float(projection.lost[0]) == 0.0
