"""Rows of 8 bits with scales: how far they are off, and that kernels read them as what they stand for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import same_dtype_projection
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.loader import native
from hvp_engine.kernels.reorthogonalize import reorthogonalize, reorthogonalize_ref
from hvp_engine.kernels.scaled_rows import BLOCK, in_fp64, parts_of, row_bytes, scaled_rows

SIZES = (1, 2, 15, 127, 128, 129, 1000, 4097, 16385, 33001)
COUNTS = (0, 1, 2, 3, 5, 8, 9, 12, 17, 26)


@pytest.fixture(autouse=True)
def native_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "native")


def rounded(rows: Tensor, spare: int = 0) -> Tensor:
    """Rows of 8 bits, with others behind them that are not in use and read as large numbers."""
    count, numel = rows.shape
    kept = torch.full((count + spare, row_bytes(numel)), 0x7E, dtype=torch.int8)
    for row, target in zip(rows, kept, strict=False):
        scaled_rows(row, target)
    return kept


def widened(rows: Tensor, numel: int) -> Tensor:
    return in_fp64(parts_of(rows, numel, slice(0, numel)), slice(0, numel))


def streams(vector_dtype: torch.dtype, sizes=SIZES, counts=COUNTS) -> tuple[list[Tensor], list[Tensor], list[int]]:
    generator = torch.Generator().manual_seed(0)
    bases, vectors = [], []
    for n, count in zip(sizes, counts, strict=True):
        rows = torch.randn(count, n, generator=generator) / n**0.5
        bases.append(rounded(rows, spare=2))
        vectors.append(torch.randn(n, generator=generator, dtype=torch.float64).to(vector_dtype))
    return bases, vectors, list(counts)


def all_results() -> list[Tensor]:
    results: list[Tensor] = []
    for vector_dtype in (torch.float32, torch.float64):
        bases, vectors, counts = streams(vector_dtype)
        results += [*reorthogonalize(bases, vectors, counts), *vectors]
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("numel", [1, 127, 128, 70_001])
def test_an_entry_is_off_by_half_a_unit_of_its_block(numel: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vector = torch.randn(numel, dtype=dtype) * torch.logspace(-30, 6, numel, dtype=dtype)
    row = torch.full((row_bytes(numel),), 55, dtype=torch.int8)
    scaled_rows(vector, row)
    found = widened(row[None], numel)[0]
    padded = torch.nn.functional.pad(vector.double().abs(), (0, -numel % BLOCK))
    largest = padded.view(-1, BLOCK).amax(dim=1).repeat_interleave(BLOCK)[:numel]
    assert bool((abs(found - vector.double()) <= largest / 254 * (1 + 1e-5)).all())
    assert not row[-(-numel // BLOCK) * (BLOCK + 4) :].any()


def test_zeros_and_denormals_stay_what_they_are_nearest_to() -> None:
    vector = torch.zeros(3 * BLOCK)
    vector[BLOCK] = 1e-42
    row = torch.empty(row_bytes(3 * BLOCK), dtype=torch.int8)
    scaled_rows(vector, row)
    found = widened(row[None], 3 * BLOCK)[0]
    assert not found[:BLOCK].any() and not found[BLOCK + 1 :].any()
    assert 0.5e-42 <= float(found[BLOCK]) <= 2e-42


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_shows(number: float) -> None:
    vector = torch.randn(300)
    vector[200] = number
    row = torch.empty(row_bytes(300), dtype=torch.int8)
    scaled_rows(vector, row)
    found = widened(row[None], 300)[0]
    assert not found[BLOCK : 2 * BLOCK].isfinite().any()
    assert found[:BLOCK].isfinite().all() and found[2 * BLOCK :].isfinite().all()


@pytest.mark.parametrize("vector_dtype", [torch.float32, torch.float64])
def test_native_error_is_at_most_twice_that_of_plain_pytorch(vector_dtype: torch.dtype) -> None:
    bases, vectors, counts = streams(vector_dtype)
    before = [v.clone() for v in vectors]
    projection = reorthogonalize(bases, vectors, counts)
    floor = 16 * torch.finfo(torch.float64).eps
    for s, count in enumerate(counts):
        rows = widened(bases[s][:count], len(vectors[s]))
        truth, true_dots = same_dtype_projection(rows, before[s].double(), count)
        plain, plain_dots = same_dtype_projection(rows.to(vector_dtype), before[s], count)
        assert (vectors[s] - truth).norm() <= 2 * (plain - truth).norm() + floor * before[s].norm()
        allowed = 2 * (plain_dots - true_dots).norm() + floor * before[s].norm()
        assert (projection.coefficients[s, :count] - true_dots).norm() <= allowed
        assert not projection.coefficients[s, count:].any()
        assert float(projection.norms[s]) == pytest.approx(float(vectors[s].double().norm()), rel=1e-13)


def test_the_reference_reads_what_the_rows_stand_for() -> None:
    bases, vectors, counts = streams(torch.float64)
    before = [v.clone() for v in vectors]
    projection = reorthogonalize_ref(bases, vectors, counts)
    for s, count in enumerate(counts):
        truth, dots = same_dtype_projection(widened(bases[s], len(vectors[s])), before[s], count)
        torch.testing.assert_close(vectors[s], truth, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(projection.coefficients[s, :count], dots, rtol=1e-12, atol=1e-12)


def test_equal_input_gives_equal_bits_at_every_thread_count() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(all_results())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_every_instruction_set_gives_the_same_result(tmp_path: Path) -> None:
    code = (
        "import sys, torch; sys.path[:0] = sys.argv[2:]\n"
        "from test_scaled_rows import all_results\n"
        "torch.save(all_results(), sys.argv[1])"
    )
    expected = all_results()
    for isa in ("baseline", "avx2", "avx512")[: ("baseline", "avx2", "avx512").index(native.isa())]:
        file, here = tmp_path / isa, Path(__file__).parent
        command = [sys.executable, "-c", code, str(file), str(here), str(here.parent)]
        environment = {**os.environ, "HVP_ENGINE_ISA": isa, "OMP_NUM_THREADS": "2"}
        subprocess.run(command, env=environment, check=True, timeout=120)
        for found, wanted in zip(torch.load(file), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=3e-5)


def test_a_nan_in_the_vector_shows_in_every_result() -> None:
    bases, vectors, counts = streams(torch.float32, sizes=(200, 40_000), counts=(1, 3))
    for vector in vectors:
        vector[7] = float("nan")
    projection = reorthogonalize(bases, vectors, counts)
    assert projection.norms.isnan().all() and projection.lost.isnan().all()


@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (torch.zeros(4, 1000, dtype=torch.int8), r"use \(capacity, 1088\) for its n|use \(capacity, 1088 for its n\)"),
        (torch.zeros(4, row_bytes(1000) + 1, dtype=torch.int8)[:, 1:], "multiples of 4 bytes"),
        (torch.zeros(1, row_bytes(1000), dtype=torch.int8).expand(4, -1), "rows overlap"),
    ],
)
def test_rows_of_another_form_are_refused(basis: Tensor, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        reorthogonalize([basis], [torch.randn(1000)], [3])


def test_backends_that_do_not_read_such_rows_leave_them_to_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    bases, vectors, counts = streams(torch.float32)
    plain = [v.clone() for v in vectors]
    expected = reorthogonalize_ref(bases, plain, counts)
    monkeypatch.setattr("hvp_engine.kernels.native.reorthogonalize.READS_SCALED_ROWS", False)
    found = reorthogonalize(bases, vectors, counts)
    assert all(torch.equal(a, b) for a, b in zip((*found, *vectors), (*expected, *plain), strict=True))
