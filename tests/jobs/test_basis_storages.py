"""Jobs whose Lanczos vectors are in 8 bits or in a file, and those that leave the choice."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interruptions import interrupted_at
from problems import Case, gpt, mlp

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, OutOfMemoryError
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.krylov.registry import STORAGES
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.scheduling import storages
from hvp_engine.scheduling.waves import StreamSizes

BLOCK = ["layers.0.attn.wq.weight"]
ON_CPU = [name for name, kept in STORAGES.items() if kept.elsewhere != "host memory"]


def job(**options: Any) -> he.Spectra:
    case = gpt()
    return he.slq(case.model, case.loss, BLOCK, data=case.data, **{"steps": 12, "probes": 2, "check": False, **options})


@pytest.mark.parametrize("basis", ON_CPU)
def test_every_storage_finds_the_spectrum_of_the_plain_one(basis: str) -> None:
    wanted, found = job(), job(basis=basis)
    (block,) = wanted
    scale = float(abs(wanted[block].alphas).max())
    assert np.allclose(found[block].alphas, wanted[block].alphas, atol=5e-3 * scale)


def test_products_in_float64_keep_float64_vectors_wherever_these_are() -> None:
    wanted = job(precision="fp64")
    (block,) = wanted
    for basis in ("int8", "int8-mmap"):
        found = job(precision="fp64", basis=basis)
        assert np.allclose(found[block].alphas, wanted[block].alphas, rtol=1e-9, atol=1e-12)


def test_bars_for_the_data_come_with_vectors_of_8_bits() -> None:
    case = mlp()
    asked = {"data": case.data, "steps": 8, "probes": 1, "check": False, "data_error": True}
    wanted, found = (he.slq(case.model, case.loss, basis=basis, **asked) for basis in ("bf16", "int8"))
    assert wanted.data_error is not None and found.data_error is not None
    assert found.data_error.certainty == pytest.approx(wanted.data_error.certainty, rel=0.05)


def test_offloading_to_the_device_itself_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Use the name without '-offload'"):
        job(basis="bf16-offload")


@pytest.mark.parametrize("basis", ["int8", "fp32-mmap", "int8-mmap"])
def test_an_interrupted_job_finds_the_same_bits(basis: str, tmp_path: Path) -> None:
    wanted = job(basis=basis)
    for steps in (1, 2, 4):
        with interrupted_at(steps, BatchedLanczos):
            job(basis=basis, out=tmp_path)
    found = job(basis=basis, out=tmp_path)
    (block,) = wanted
    assert np.array_equal(found[block].alphas, wanted[block].alphas)
    assert np.array_equal(found[block].betas, wanted[block].betas)


def test_a_file_without_room_is_an_error_that_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = job(basis="int8-mmap")
    with interrupted_at(5, BatchedLanczos):
        job(basis="int8-mmap", out=tmp_path / "run")

    def full(descriptor: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hvp_engine.system.pages.allocate", full)
        with pytest.raises(OutOfMemoryError, match="No space left on device.*set TMPDIR to a folder with more"):
            job(basis="int8-mmap", out=tmp_path / "run")
    found = job(basis="int8-mmap", out=tmp_path / "run")
    (block,) = wanted
    assert np.array_equal(found[block].alphas, wanted[block].alphas)


def test_nothing_is_left_of_a_file_while_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with interrupted_at(3, BatchedLanczos):
        job(basis="fp32-mmap")
    assert list(tmp_path.iterdir()) == []


def test_the_choice_is_made_once_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = job(basis="int8")
    monkeypatch.setattr(storages, "RESIDENT", ("int8",))
    with interrupted_at(4, BatchedLanczos):
        job(basis="auto", out=tmp_path)
    monkeypatch.undo()  # by now there would be room for fp32
    found = job(basis="auto", out=tmp_path)
    (block,) = wanted
    assert np.array_equal(found[block].alphas, wanted[block].alphas)
    assert found.manifest["basis"] == {"name": "int8", "kept": "8 bits with scales, in memory", "expected_loss": 1e-2}
    assert found.manifest["config"]["basis"] == "auto"


def test_with_room_for_everything_nothing_is_given_up() -> None:
    wanted, found = job(), job(basis="auto")
    (block,) = wanted
    assert np.array_equal(found[block].alphas, wanted[block].alphas)
    assert found.manifest["basis"]["name"] == "fp32" and found.manifest["notes"] == wanted.manifest["notes"]


def need(case: Case, basis: str) -> int:
    """Bytes for one sample's graph and the vectors of one stream."""
    operator = HessianOperator(case.model, case.loss, data=case.data, microbatch=1)
    streams = StreamSizes(operator.numel, 100, 1, operator.dtype, STORAGES[basis])
    return operator.scheduler.working_bytes + streams.largest


def test_a_budget_below_8_bits_leads_to_the_disk_as_the_plan_says() -> None:
    case = mlp()
    arguments = {"data": case.data, "steps": 100, "probes": 1, "microbatch": 1, "head_curvature": False}
    lean, resident = (need(case, name) for name in ("int8-mmap", "int8"))
    assert lean < resident < need(case, "bf16")
    for memory, name in ((lean, "int8-mmap"), (resident, "int8")):
        planned = he.plan(case.model, case.loss, **arguments, basis="auto", memory=memory)
        found = he.slq(case.model, case.loss, **arguments, basis="auto", memory=memory, check=False)
        assert found.manifest["basis"]["name"] == planned.setting.basis == name
        assert any(f"kept as {name}" in note for note in found.manifest["notes"])
        assert any(f"kept as {name}" in note for note in planned.notes)
        assert planned.setting.vector_bytes <= memory
        assert (planned.setting.elsewhere_bytes > 0) == (name == "int8-mmap")
    with pytest.raises(OutOfMemoryError):
        he.slq(case.model, case.loss, **arguments, basis="auto", memory=lean // 4, check=False)
