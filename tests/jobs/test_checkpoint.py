"""Interrupting and resuming a job, and refusing what does not belong to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import Case, gpt, mlp, quadratic, symmetric

import hvp_engine as he
from hvp_engine.errors import OutOfMemoryError, RunFolderError, SecondDerivativeError
from hvp_engine.jobs import checkpoint
from hvp_engine.jobs.folder import FOLDER
from hvp_engine.krylov.lanczos import BatchedLanczos

OPTIONS = {"steps": 8, "probes": 2, "check": False}


def job(case: Case, out: Path | None, **options: object) -> he.Spectra:
    return he.slq(case.model, case.loss, ["wte.weight", "ln_f.weight"], data=case.data, out=out, **OPTIONS, **options)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int, error: BaseException) -> None:
    original = BatchedLanczos.step
    count = 0

    def step(state: BatchedLanczos) -> int:
        nonlocal count
        if count == steps:
            raise error
        count += 1
        return original(state)

    monkeypatch.setattr(BatchedLanczos, "step", step)


def same(first: he.Spectra, second: he.Spectra) -> bool:
    return all(
        np.array_equal(first[name].alphas, second[name].alphas)
        and np.array_equal(first[name].nodes, second[name].nodes)
        for name in first
    )


@pytest.mark.parametrize("options", [{}, {"basis": "bf16"}, {"reorthogonalize": "none"}, {"precision": "fp64"}])
def test_an_interrupted_job_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    wanted = job(gpt(), None, **options)
    for stop in (3, 2):  # twice: after step 3, and again two steps later
        with monkeypatch.context() as patch:
            interrupt_after(patch, stop, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                job(gpt(), tmp_path / "run", **options)
    steps = 0
    original = BatchedLanczos.step

    def counted(state: BatchedLanczos) -> int:
        nonlocal steps
        steps += 1
        return original(state)

    monkeypatch.setattr(BatchedLanczos, "step", counted)
    found = job(gpt(), tmp_path / "run", **options)
    assert steps == 3
    assert same(found, wanted)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.json", "spectra.safetensors"]


def test_periodic_checkpoints_survive_a_crash_without_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "_OVERHEAD", 0.0)
    wanted = job(gpt(), None)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5, SystemExit())
        # As after a power cut: nothing is written on the way out.
        original = checkpoint.Checkpoint.save
        calls = 0

        def save(self: checkpoint.Checkpoint, wave: int, lanczos: BatchedLanczos) -> None:
            nonlocal calls
            calls += 1
            if calls <= 4:
                original(self, wave, lanczos)

        patch.setattr(checkpoint.Checkpoint, "save", save)
        with pytest.raises(SystemExit):
            job(gpt(), tmp_path)
    rows = sorted(path.name for path in (tmp_path / FOLDER).glob("wave-000-rows-*"))
    assert rows[0].startswith("wave-000-rows-00000-") and len(rows) == 4
    assert same(job(gpt(), tmp_path), wanted)


def test_vectors_are_written_and_read_in_pieces_that_the_budget_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_PIECE_BYTES", 0)
    wanted = job(gpt(), None)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            job(gpt(), tmp_path)
    rows = sorted(path.name for path in (tmp_path / FOLDER).glob("wave-000-rows-*"))
    assert rows == ["wave-000-rows-00000-00003.safetensors", "wave-000-rows-00003-00006.safetensors"]
    assert same(job(gpt(), tmp_path), wanted)


def test_waves_resume_where_they_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = quadratic(symmetric(torch.linspace(-1, 2, 400)).float())
    options: dict[str, object] = {"steps": 50, "probes": 6, "check": False}
    wanted = he.slq(problem.model, problem.loss, **options)
    options["memory"] = 2 * wanted.manifest["plan"]["graph_bytes"] + 5 * 400 * (50 + 3) * 4 // 2  # two streams
    with monkeypatch.context() as patch:
        interrupt_after(patch, 70, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            he.slq(problem.model, problem.loss, out=tmp_path, **options)
    assert not list((tmp_path / FOLDER).glob("wave-000-rows-*"))
    assert (tmp_path / FOLDER / "wave-000-state.safetensors").exists()
    assert same(he.slq(problem.model, problem.loss, out=tmp_path, **options), wanted)


def test_what_an_earlier_version_did_not_keep_of_a_finished_wave_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = quadratic(symmetric(torch.linspace(-1, 2, 400)).float())
    options: dict[str, object] = {"steps": 50, "probes": 4, "check": False}
    wanted = he.slq(problem.model, problem.loss, **options)
    options["memory"] = 2 * wanted.manifest["plan"]["graph_bytes"] + 5 * 400 * (50 + 3) * 4 // 2  # two streams
    write = checkpoint.write_tensors

    def as_before(path: Path, tensors: dict[str, torch.Tensor], key: str) -> None:
        if "scalar/betas" in tensors:
            tensors["scalar/betas"][:, -1] = 0.0
            del tensors["scalar/keeps_residuals"]
        write(path, tensors, key)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", as_before)
        interrupt_after(patch, 70, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            he.slq(problem.model, problem.loss, out=tmp_path, **options)
    found = he.slq(problem.model, problem.loss, out=tmp_path, **options)
    assert same(found, wanted)
    residuals = found["full"].residuals
    assert np.isnan(residuals[:2]).all()
    assert np.array_equal(residuals[2:], wanted["full"].residuals[2:])  # this wave took its last step now


def test_a_finished_run_is_returned_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = job(gpt(), tmp_path)
    interrupt_after(monkeypatch, 0, AssertionError("nothing should be computed again"))
    assert same(job(gpt(), tmp_path), first)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool) -> None:
    with monkeypatch.context() as patch:
        if not finished:
            interrupt_after(patch, 3, KeyboardInterrupt())
        try:
            job(gpt(), tmp_path)
        except KeyboardInterrupt:
            assert not finished
    with pytest.raises(RunFolderError, match="holds another job .*seed: 0 there, 5 here"):
        job(gpt(), tmp_path, seed=5)
    changed = gpt()
    changed.model.wte.weight.data[0, 0] += 1
    with pytest.raises(RunFolderError, match="parameters"):
        job(changed, tmp_path)
    other_data = gpt()
    other_data.data = other_data.data[:1]
    with pytest.raises(RunFolderError, match="data"):
        job(other_data, tmp_path)


@pytest.mark.parametrize(("stage", "error"), [("_verify", SecondDerivativeError), ("planned_waves", OutOfMemoryError)])
def test_a_job_that_was_refused_leaves_its_folder_to_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: type[Exception]
) -> None:
    def refuse(*_: object) -> None:
        raise error("use other settings")

    case = mlp()
    with monkeypatch.context() as patch:
        patch.setattr(f"hvp_engine.jobs.runner.{stage}", refuse)
        with pytest.raises(error):
            he.slq(case.model, case.loss, data=case.data, steps=5, probes=1, out=tmp_path)
    assert he.slq(case.model, case.loss, data=case.data, steps=3, probes=1, precision="fp64", out=tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(out: Path) -> Path:
        with monkeypatch.context() as patch:
            interrupt_after(patch, 3, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                job(gpt(), out)
        return out / FOLDER

    folder = interrupted(tmp_path / "a")
    next(folder.glob("wave-000-rows-*")).unlink()
    with pytest.raises(RunFolderError, match="rows-00000-00004.safetensors cannot be read.*delete .*checkpoint"):
        job(gpt(), tmp_path / "a")
    folder = interrupted(tmp_path / "b")
    (folder / "wave-000-state.safetensors").write_bytes(b"garbage")
    with pytest.raises(RunFolderError, match="damaged.*delete .*checkpoint"):
        job(gpt(), tmp_path / "b")
    shutil.rmtree(folder)  # as the message says
    assert same(job(gpt(), tmp_path / "b"), job(gpt(), None))


def test_a_full_disk_is_said_and_the_last_checkpoint_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = job(gpt(), None)
    monkeypatch.setattr(checkpoint, "_EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "_OVERHEAD", 0.0)
    original = checkpoint.write_tensors
    calls = 0

    def write(path: Path, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise RunFolderError(f"{path}: no space left on the device.")
        original(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", write)
        interrupt_after(patch, 5, KeyboardInterrupt())
        with (
            pytest.warns(RuntimeWarning, match="no space left on the device. The job goes on"),
            pytest.raises(KeyboardInterrupt),
        ):
            job(gpt(), tmp_path)
    assert same(job(gpt(), tmp_path), wanted)


def test_an_unwritable_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(RunFolderError, match="cannot be created"):
        he.slq(mlp().model, mlp().loss, data=mlp().data, out=blocked / "run", **OPTIONS)


def test_other_free_memory_on_resume_keeps_the_waves_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = quadratic(symmetric(torch.linspace(-1, 2, 400)).float())
    options: dict[str, object] = {"steps": 50, "probes": 6, "check": False}
    wanted = he.slq(problem.model, problem.loss, **options)
    tight = 2 * wanted.manifest["plan"]["graph_bytes"] + 5 * 400 * (50 + 3) * 4 // 2
    with monkeypatch.context() as patch:
        interrupt_after(patch, 70, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            he.slq(problem.model, problem.loss, out=tmp_path, memory=tight, **options)
    found = he.slq(problem.model, problem.loss, out=tmp_path, **options)
    assert found.manifest["plan"]["waves"] == 3
    assert same(found, wanted)


def test_a_full_disk_at_the_end_of_a_wave_keeps_its_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = job(gpt(), None)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            job(gpt(), tmp_path)

    def full(path: Path, *arguments: object) -> None:
        raise RunFolderError(f"{path}: no space left on the device.")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        patch.setattr(he.Spectra, "save", lambda self, folder: full(folder))
        with (
            pytest.warns(RuntimeWarning, match="The job goes on"),
            pytest.raises(RunFolderError, match="no space.*What the last checkpoint could write is kept"),
        ):
            job(gpt(), tmp_path)
    assert same(job(gpt(), tmp_path), wanted)


def test_a_job_without_curvature_can_be_saved(tmp_path: Path) -> None:
    data = [torch.randn(4, 5)]
    spectra = he.slq(torch.nn.Linear(5, 1), lambda m, b: m(b).mean(), data=data, steps=3, probes=1, out=tmp_path)
    assert spectra.manifest["verification"]["finite_difference"] is None
    assert (he.Spectra.load(tmp_path)["full"].nodes == 0).all()
