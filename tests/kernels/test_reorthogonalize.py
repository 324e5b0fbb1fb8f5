from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import same_dtype_projection
from rough_streams import DELAYED, NEAR, RULES, rough_streams

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.loader import native
from hvp_engine.kernels.reorthogonalize import reorthogonalize, reorthogonalize_ref
from hvp_engine.kernels.streams import Rule

SIZES = (1, 2, 15, 16, 17, 31, 33, 129, 4097, 16385, 33001)
BASIS_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
VECTOR_DTYPES = (torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def native_backend(monkeypatch):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "native")


@functools.cache
def exact_streams(sizes):
    """Orthonormal rows in fp64; every number of rows from 0 on meets every way of blocking them."""
    generator = torch.Generator().manual_seed(0)
    counts = [min(n - 1, 3 * index + index % 2) for index, n in enumerate(sizes)]
    rows = [torch.randn(n, count, generator=generator).double() for n, count in zip(sizes, counts, strict=True)]
    vectors = [torch.randn(n, generator=generator).double() for n in sizes]
    return [torch.linalg.qr(r)[0].T if r.numel() else r.T for r in rows], vectors, counts


def make_streams(basis_dtype, vector_dtype, sizes=SIZES, extra_columns=0):
    """Rounds the exact streams and surrounds the rows in use by NaN, which no result may show."""
    exact, vectors, counts = exact_streams(sizes)
    bases = []
    for rows in exact:
        count, n = rows.shape
        storage = torch.full((count + 2, n + extra_columns), float("nan"), dtype=basis_dtype)
        storage[:count, :n] = rows
        bases.append(storage[:, :n])
    return bases, [v.clone().to(vector_dtype) for v in vectors], list(counts)


def all_results():
    """Everything that the kernel returns for each pair of dtypes."""
    results = []
    for basis_dtype in BASIS_DTYPES:
        for vector_dtype in VECTOR_DTYPES:
            bases, vectors, counts = make_streams(basis_dtype, vector_dtype, sizes=(1, 17, 129, 4097, 16385))
            results += [*reorthogonalize(bases, vectors, counts), *vectors]
    return results


@pytest.mark.parametrize("basis_dtype", BASIS_DTYPES)
@pytest.mark.parametrize("vector_dtype", VECTOR_DTYPES)
def test_native_error_is_at_most_twice_that_of_plain_pytorch(basis_dtype, vector_dtype):
    bases, vectors, counts = make_streams(basis_dtype, vector_dtype, extra_columns=3)
    before = [v.clone() for v in vectors]
    projection = reorthogonalize(bases, vectors, counts)
    floor = 16 * torch.finfo(torch.float64).eps  # the fp64 truth itself is rounded
    for s, count in enumerate(counts):
        truth, true_dots = same_dtype_projection(bases[s].double(), before[s].double(), count)
        plain, plain_dots = same_dtype_projection(bases[s], before[s], count)
        allowed = 2 * (plain - truth).norm() + floor * before[s].norm()
        assert (vectors[s] - truth).norm() <= allowed
        allowed = 2 * (plain_dots - true_dots).norm() + floor * before[s].norm()
        assert (projection.coefficients[s, :count] - true_dots).norm() <= allowed
        assert not projection.coefficients[s, count:].any()
        assert float(projection.norms[s]) == pytest.approx(float(vectors[s].double().norm()), rel=1e-13)


@pytest.mark.parametrize("basis_dtype", BASIS_DTYPES)
def test_the_reference_agrees_with_plain_pytorch(basis_dtype):
    bases, vectors, counts = make_streams(basis_dtype, torch.float64)
    before = [v.clone() for v in vectors]
    projection = reorthogonalize_ref(bases, vectors, counts)
    for s, count in enumerate(counts):
        truth, dots = same_dtype_projection(bases[s], before[s], count)
        torch.testing.assert_close(vectors[s], truth, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(projection.coefficients[s, :count], dots, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("basis_dtype", BASIS_DTYPES)
def test_the_vector_becomes_orthogonal_and_its_norm_is_reported(basis_dtype):
    bases, vectors, counts = make_streams(basis_dtype, torch.float64)
    projection = reorthogonalize(bases, vectors, counts)
    rounding = 2e-2 if basis_dtype == torch.bfloat16 else 1e-6
    for basis, vector, count, norm in zip(bases, vectors, counts, projection.norms, strict=True):
        assert float(norm) == pytest.approx(float(vector.norm()), rel=1e-13)
        if count > 0:
            assert (basis[:count].double() @ vector).abs().max() <= rounding * norm


def test_lost_is_the_second_pass_relative_to_the_norm_after_the_first():
    torch.manual_seed(3)
    n, count = 5000, 7
    basis = torch.linalg.qr(torch.randn(n, count, dtype=torch.float64))[0].T.contiguous()
    basis[1] += 1e-3 * basis[0]
    vector = torch.randn(n, dtype=torch.float64)
    first = vector - (basis @ vector) @ basis
    expected = (basis @ first).abs().max() / first.norm()
    projection = reorthogonalize([basis], [vector], [count])
    assert float(projection.lost[0]) == pytest.approx(float(expected), rel=1e-9)


def test_a_vector_inside_the_span_is_reduced_to_rounding_and_a_zero_vector_stays_zero():
    torch.manual_seed(4)
    basis = torch.linalg.qr(torch.randn(3000, 20, dtype=torch.float64))[0].T.contiguous()
    inside, zero = (torch.randn(20, dtype=torch.float64) @ basis), torch.zeros(3000, dtype=torch.float64)
    projection = reorthogonalize([basis, basis], [inside, zero], [20, 20])
    assert float(projection.norms[0]) < 1e-14
    assert float(projection.norms[1]) == 0.0
    assert float(projection.lost[1]) == 0.0


@pytest.mark.parametrize("basis_dtype", BASIS_DTYPES)
def test_equal_input_gives_equal_bits_at_every_thread_count(basis_dtype):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            bases, vectors, counts = make_streams(basis_dtype, torch.float32)
            results.append((*vectors, *reorthogonalize(bases, vectors, counts)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_mixed_dtypes_and_thousands_of_small_streams_match_the_reference():
    torch.manual_seed(5)
    dtypes = [(b, v) for b in BASIS_DTYPES for v in VECTOR_DTYPES]
    bases, vectors, counts = [], [], []
    for s in range(1000):
        basis_dtype, vector_dtype = dtypes[s % len(dtypes)]
        n = 40 + s % 97
        bases.append((torch.randn(5, n) / n**0.5).to(basis_dtype))
        vectors.append(torch.randn(n).to(vector_dtype))
        counts.append(s % 6)
    plain = [v.clone() for v in vectors]
    expected = reorthogonalize_ref(bases, plain, counts)
    found = reorthogonalize(bases, vectors, counts)
    for name in ("coefficients", "norms", "lost"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    for a, b in zip(vectors, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


ROUGH = [(n, count) for n in (33, 129, 4097, 40001) for count in (0, 1, 2, 3, 9, 26) if count < n - 1]


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_rule_takes_out_what_the_reference_takes_out(name, dtype):
    rule, tolerance = RULES[name], 1e-5 if dtype == torch.float32 else 1e-11
    found = rough_streams(ROUGH, dtype, dtype, extra_columns=3)
    wanted = rough_streams(ROUGH, dtype, dtype, extra_columns=3)
    for a, b in zip(reorthogonalize(*found, rule), reorthogonalize_ref(*wanted, rule), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for a, b, count in zip(found[0], wanted[0], found[2], strict=True):
        torch.testing.assert_close(a[:count], b[:count], rtol=tolerance, atol=tolerance)
    for a, b in zip(found[1], wanted[1], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("function", [reorthogonalize, reorthogonalize_ref])
@pytest.mark.parametrize("rule", [NEAR, DELAYED], ids=["near", "delayed"])
def test_what_a_rule_leaves_is_within_its_tolerances(function, rule):
    bases, vectors, counts = rough_streams(ROUGH, torch.float64, torch.float64)
    before = [basis.clone() for basis in bases]
    found = function(bases, vectors, counts, rule)
    corrected = 0
    for basis, old, vector, count, lost in zip(bases, before, vectors, counts, found.lost, strict=True):
        rows = basis[:count]
        left = float((rows @ vector).norm() / vector.norm())
        last = float((rows[:-1] @ rows[-1]).norm()) if count else 0.0
        if rule.postponed is None:
            assert torch.equal(rows, old[:count])
            assert left <= 1.01 * rule.tolerance or last > rule.tolerance  # a basis that is rough itself leaves more
            assert last > rule.tolerance or float(lost) <= rule.tolerance
        else:
            assert left <= 1.01 * rule.postponed and last <= 1.01 * rule.tolerance
            assert float(lost) <= rule.tolerance
            assert torch.equal(rows[:-1], old[: max(0, count - 1)])
            corrected += not torch.equal(rows, old[:count])
    assert corrected > 0 or rule.postponed is None


def test_a_delayed_correction_leaves_the_alpha_of_the_corrected_vector():
    torch.manual_seed(6)
    n, count = 3000, 9
    rows = torch.linalg.qr(torch.randn(n, count, dtype=torch.float64))[0].T.contiguous()
    eigenvalues = torch.linspace(-1, 5, n, dtype=torch.float64)
    # In a Krylov space of rows 0 .. count - 2 the operator takes the last row to itself and the one before alone.
    clean = rows[-1].clone()
    rows[-1] += 1e-4 * rows[0]
    product = eigenvalues * clean
    product -= rows[:-2].T @ (rows[:-2] @ product)
    alpha = float(clean @ product)
    product += 1e-4 * 5.0 * rows[0]  # what the operator makes of the error
    found = reorthogonalize([rows], [product], [count], DELAYED)
    assert float((rows[-1] - clean).norm()) <= 1e-7
    assert float(found.coefficients[0, -1]) == pytest.approx(alpha, abs=1e-11)
    plain = rows.clone()
    plain[-1] = clean + 1e-4 * rows[0]
    assert abs(float(plain[-1] @ (product + found.coefficients[0] @ rows)) - alpha) > 1e-9  # uncorrected it shows


def test_rules_give_equal_bits_at_every_thread_count():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            bases, vectors, counts = rough_streams(ROUGH[-6:], torch.float32, torch.float32)
            found = reorthogonalize(bases, vectors, counts, DELAYED)
            results.append((*vectors, *found, *(b[:c] for b, c in zip(bases, counts, strict=True))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("rule", [Rule(-1), Rule(0, -1e-3), Rule(2, 0.0, -1e-3)])
def test_a_negative_number_in_a_rule_is_refused(rule):
    with pytest.raises(ConfigurationError, match="at least 0"):
        reorthogonalize([torch.randn(2, 5)], [torch.randn(5)], [1], rule)


def test_corrections_of_rows_of_another_dtype_cannot_be_postponed():
    with pytest.raises(ConfigurationError, match="use postponed=None"):
        reorthogonalize([torch.randn(2, 5).bfloat16()], [torch.randn(5)], [1], DELAYED)
    reorthogonalize([torch.randn(2, 5).bfloat16()], [torch.randn(5)], [1], DELAYED._replace(postponed=None))


def test_a_nan_in_the_vector_shows_in_every_result():
    bases, vectors, counts = make_streams(torch.float32, torch.float32, sizes=(200, 40000))
    counts[0] = 1
    bases[0].zero_()
    for vector in vectors:
        vector[7] = float("nan")
    projection = reorthogonalize(bases, vectors, counts)
    assert projection.norms.isnan().all()
    assert projection.lost.isnan().all()


def test_a_single_row_may_have_any_stride_and_count_may_be_zero_everywhere():
    basis = torch.randn(9, 6).as_strided((1, 5), (1, 1))
    vector = torch.randn(5)
    before = vector.clone()
    projection = reorthogonalize([basis], [vector], [0])
    assert torch.equal(vector, before)
    assert projection.coefficients.shape == (1, 0)
    assert float(projection.norms[0]) == pytest.approx(float(before.double().norm()))
    assert float(projection.lost[0]) == 0.0


def test_every_instruction_set_gives_the_same_result(tmp_path):
    code = (
        "import sys, torch; sys.path[:0] = sys.argv[2:]\n"
        "from test_reorthogonalize import all_results\n"
        "torch.save(all_results(), sys.argv[1])"
    )
    expected = all_results()
    for isa in ("baseline", "avx2", "avx512")[: ("baseline", "avx2", "avx512").index(native.isa())]:
        file = tmp_path / isa
        here = Path(__file__).parent
        command = [sys.executable, "-c", code, str(file), str(here), str(here.parent)]
        environment = {**os.environ, "HVP_ENGINE_ISA": isa, "OMP_NUM_THREADS": "2"}
        subprocess.run(command, env=environment, check=True, timeout=120)
        for found, wanted in zip(torch.load(file), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, v, c: (b, v, []), "1 bases, 1 vectors and 0 counts"),
        (lambda b, v, c: ([], [], []), "at least one stream"),
        (lambda b, v, c: ([b[0].half()], v, c), "torch.float16"),
        (lambda b, v, c: (b, [v[0].bfloat16()], c), "vector torch.bfloat16"),
        (lambda b, v, c: (b, [v[0][:-1]], c), r"use \(capacity, n\)"),
        (lambda b, v, c: (b, v, [5]), "count 5 is outside 0..4"),
        (lambda b, v, c: (b, v, [-1]), "count -1 is outside"),
        (lambda b, v, c: ([b[0].T.contiguous().T], v, c), "contiguous"),
        (lambda b, v, c: ([b[0][:1].expand(4, 6)], v, c), "rows overlap"),
        (lambda b, v, c: ([b[0].to("meta")], v, c), "one device"),
    ],
)
def test_bad_input_is_refused_with_its_cause(change, message):
    arguments = change([torch.randn(4, 6)], [torch.randn(6)], [3])
    for function in (reorthogonalize, reorthogonalize_ref):
        with pytest.raises(ConfigurationError, match=message):
            function(*arguments)
