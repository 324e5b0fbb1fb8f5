"""The validation of a GPU, run on the CPU: its checks pass on kernels that are right, and fail on wrong ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import hvp_engine.kernels.reorthogonalize as reorthogonalize_module

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")
BACKENDS = ("triton", "cuda", "native", "torch")


@pytest.fixture(scope="module")
def gpu_validate():
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu_validate

        yield gpu_validate
    finally:
        sys.path[:] = before


def test_without_a_gpu_it_ends_with_one_sentence_and_exit_code_2(gpu_validate, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_validate.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "finds no CUDA device" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_every_check_passes_on_the_cpu_and_every_kernel_is_timed(gpu_validate, tmp_path, backend):
    report = gpu_validate.run(CPU, small=True, backends=[backend])
    assert [check for check in report.checks if not check.ok] == []
    assert report.ok
    names = " ".join(check.name for check in report.checks)
    for family in ("reorthogonalize", "record step", "quadrature", "hvp, fp64", "slq, bf16", "attention", "embedding"):
        assert family in names
    assert all(timing.seconds > 0 for timing in report.timings)
    report.write(tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["ok"] is True
    report.write(tmp_path / "found.md")
    assert "**All checks passed.**" in (tmp_path / "found.md").read_text()


def test_a_wrong_kernel_fails_its_check_and_the_others_go_on(gpu_validate, monkeypatch):
    from validation import kernels
    from validation.report import Report

    right = reorthogonalize_module.reorthogonalize

    def forgets_the_last_row(bases, vectors, counts):
        return right(bases, vectors, [max(0, count - 1) if count > 1 else count for count in counts])

    monkeypatch.setattr(kernels, "reorthogonalize", forgets_the_last_row)
    report = Report({})
    report.run_checks("reorthogonalize", lambda: kernels.check_reorthogonalize(CPU, "torch", True))
    report.run_checks("record step", lambda: kernels.check_record_step(CPU, "torch", True))
    failed = [check.name for check in report.checks if not check.ok]
    assert failed
    assert all("reorthogonalize" in name for name in failed)
    assert not report.ok


def test_a_backend_is_validated_on_the_families_that_the_registry_finds(gpu_validate):
    asked = [(name, gpu_validate._has_quadrature(name), gpu_validate._has_operations(name)) for name in BACKENDS]
    assert asked == [("triton", False, True), ("cuda", True, False), ("native", True, True), ("torch", True, True)]


def test_a_device_without_kernels_fails(gpu_validate):
    report = gpu_validate.run(CPU, small=True, backends=[])
    assert not report.ok
    assert "no kernels to check" in report.markdown()


def test_an_exception_is_a_failed_check(gpu_validate, capsys):
    from validation.report import Report

    def broken():
        raise RuntimeError("an illegal memory access was encountered\nand more")
        yield

    report = Report({"device": "x"})
    report.run_checks("broken", broken)
    assert not report.ok
    assert "RuntimeError: an illegal memory access was encountered" in report.markdown()
    assert "and more" not in report.markdown()


def test_one_wrong_entry_of_many_is_an_error(gpu_validate):
    from validation.compare import used, worst

    exact = torch.randn(100_000, dtype=torch.float64)
    rounded = exact.float()
    assert used(*worst([(rounded, rounded, exact)])) <= 1
    wrong = rounded.clone()
    wrong[777] = 0.0
    assert used(*worst([(wrong, rounded, exact)])) > 1
    wrong[777] = float("nan")
    assert used(*worst([(wrong, rounded, exact)])) == float("inf")


def test_rows_of_a_gpu_leave_those_of_the_cpu_alone(gpu_validate, monkeypatch):
    import results

    known = json.loads((BENCHMARKS / "results" / "results.json").read_text())
    monkeypatch.setattr(results, "machine", lambda device: {"device": "some card", "driver": "1.2"})
    row = {"median_s": 0.123456789, "size": "laptop", "ratio": 3.14159265}
    merged = results.merge(known, {"test_sweep_against_baselines": row}, torch.device("cuda"))
    assert known["machine"] == merged["machine"]
    assert known["benchmarks"].items() <= merged["benchmarks"].items()
    new = merged["benchmarks"]["test_sweep_against_baselines[laptop][cuda]"]
    assert new == {"median_s": 0.123457, "size": "laptop", "ratio": 3.142, "device": "cuda"}
    text = results.table(merged)
    assert "cuda: device some card, driver 1.2." in text
    assert "| `test_sweep_against_baselines[laptop][cuda]` | cuda | 0.1235 | ratio 3.142 |" in text
