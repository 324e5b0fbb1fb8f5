"""What a resumed job does not do again, and what it says of the runs before it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import gpt

import hvp_engine as he
from hvp_engine.errors import OutOfMemoryError, RunFolderError
from hvp_engine.jobs import checkpoint, environment, runner, sittings
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.operators.head import shelf, store
from hvp_engine.ops.head.curvature import head_cost
from hvp_engine.scheduling import policy

BLOCKS = ["layers.0.attn.wq.weight", "ln_f.weight"]
FOLDER = "hvp_engine-checkpoint"


def job(out: Path | None, **options: Any) -> he.Spectra:
    case = gpt()
    return he.slq(case.model, case.loss, BLOCKS, data=case.data, out=out, **{"steps": 6, "probes": 2, **options})


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Begin a job and interrupt it before a step."""

    def interrupted(out: Path, before: int, run: Callable[..., he.Spectra] = job, **options: Any) -> None:
        original = BatchedLanczos.step

        def step(state: BatchedLanczos) -> int:
            if state.position == before:
                raise KeyboardInterrupt
            return original(state)

        with monkeypatch.context() as patch:
            patch.setattr(BatchedLanczos, "step", step)
            with pytest.raises(KeyboardInterrupt):
                run(out, **options)

    return interrupted


@pytest.fixture
def forming(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the head's curvature pay at once; list the tokens of every forming."""
    monkeypatch.setattr(policy, "head_cost", lambda *a, **k: replace(head_cost(*a, **k), form_flop=-1e30))
    formed: list[int] = []
    original = store.form_head_curvature

    def form(hidden: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        formed.append(hidden.shape[0])
        return original(hidden, *arguments, **options)

    monkeypatch.setattr(store, "form_head_curvature", form)
    return formed


def same(first: he.Spectra, second: he.Spectra) -> bool:
    return all(np.array_equal(first[name].alphas, second[name].alphas) for name in first)


Stop = Callable[..., None]


def test_the_second_derivative_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop) -> None:
    wanted = job(None)
    stop(tmp_path, 3)
    monkeypatch.setattr("hvp_engine.operators.operator.verify", lambda *_: pytest.fail("checked again"))
    found = job(tmp_path)
    assert same(found, wanted)
    assert found.manifest["verification"] == wanted.manifest["verification"]


class Cube(torch.autograd.Function):
    """A function that only a test can tell right."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradients[0]


@pytest.mark.parametrize("rare", [False, True])
def test_custom_functions_are_tested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop, rare: bool
) -> None:
    model = torch.nn.Linear(4, 3)
    data = [torch.full((5, 4), 0.1), torch.full((5, 4), 2.0)]  # only the second batch is large

    def loss(m: torch.nn.Module, b: torch.Tensor) -> torch.Tensor:
        out = m(b)
        return (Cube.apply(out) if not rare or b[0, 0] > 1 else out**2).sum(1).mean()

    def run(out: Path | None) -> he.Spectra:
        return he.slq(model, loss, data=data, steps=6, probes=1, out=out)

    wanted = run(None)
    stop(tmp_path, 3, run)
    monkeypatch.setattr("hvp_engine.operators.operator.verify", lambda *_: pytest.fail("checked again"))
    found = run(tmp_path)
    assert np.array_equal(found["full"].alphas, wanted["full"].alphas)


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("options", [{}, {"head_curvature_tolerance": 0.1}, {"precision": "bf16"}])
def test_the_heads_curvature_is_formed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop, forming: list[int], place: str, options: dict[str, Any]
) -> None:
    if place == "disk":
        monkeypatch.setattr(policy, "MEMORY_SHARE", 0.0)
    options = {"check": False, **options}
    wanted = job(None, **options)
    forming.clear()
    stop(tmp_path, 3, **options)
    assert len(forming) == 2  # micro-batches
    forming.clear()
    found = job(tmp_path, **options)
    assert forming == []
    assert same(found, wanted)
    assert found.manifest["plan"]["head_curvature"] == wanted.manifest["plan"]["head_curvature"]
    assert place in found.manifest["plan"]["head_curvature"]
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize(("first", "then"), [("memory", "disk"), ("disk", "memory")])
def test_curvature_serves_a_run_with_more_or_less_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop, forming: list[int], first: str, then: str
) -> None:
    wanted = job(None, check=False)
    shares = {"memory": policy.MEMORY_SHARE, "disk": 0.0}
    monkeypatch.setattr(policy, "MEMORY_SHARE", shares[first])
    stop(tmp_path, 3, check=False)
    forming.clear()
    monkeypatch.setattr(policy, "MEMORY_SHARE", shares[then])
    monkeypatch.setattr(policy, "DISK_SHARE", 0.0 if then == "disk" else policy.DISK_SHARE)  # nothing new fits
    assert same(job(tmp_path, check=False), wanted)
    assert forming == []


def test_an_interrupted_forming_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forming: list[int]
) -> None:
    wanted = job(None, check=False)
    forming.clear()
    whole = store.form_head_curvature

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if forming:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "form_head_curvature", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job(tmp_path, check=False)
    forming.clear()
    assert same(job(tmp_path, check=False), wanted)
    assert len(forming) == 1


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_damaged_curvature_is_said_and_formed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop, forming: list[int], place: str
) -> None:
    if place == "disk":
        monkeypatch.setattr(policy, "MEMORY_SHARE", 0.0)
    wanted = job(None, check=False)
    stop(tmp_path, 3, check=False)
    path = sorted((tmp_path / FOLDER).glob("head-*.pages" if place == "disk" else "head-*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    forming.clear()
    with pytest.warns(RuntimeWarning, match=f"formed again: .*{path.name} is damaged"):
        assert same(job(tmp_path, check=False), wanted)
    assert len(forming) == 1


def test_what_forms_faster_than_it_is_written_is_formed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop, forming: list[int]
) -> None:
    monkeypatch.setattr(shelf, "_SMALL", 0)
    monkeypatch.setattr(shelf, "_RATE", 0.0)
    stop(tmp_path, 3, check=False)
    assert not list((tmp_path / FOLDER).glob("head-*-*"))
    forming.clear()
    assert same(job(tmp_path, check=False), job(None, check=False))
    assert len(forming) == 4


def test_a_job_without_curvature_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop, forming: list[int]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(policy, "head_cost", lambda *a, **k: replace(head_cost(*a, **k), form_flop=1e30))
        wanted = job(None, check=False)
        stop(tmp_path, 3, check=False)
    assert same(job(tmp_path, check=False), wanted)
    assert forming == []


def test_a_job_refused_after_its_curvature_leaves_the_folder_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forming: list[int]
) -> None:
    def refuse(*_: object) -> None:
        raise OutOfMemoryError("Use fewer steps.")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "planned_waves", refuse)
        with pytest.raises(OutOfMemoryError):
            job(tmp_path, check=False)
    job(tmp_path, check=False, steps=3)


def test_a_resumed_job_that_is_refused_keeps_its_curvature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop, forming: list[int]
) -> None:
    def refuse(*_: object) -> None:
        raise OutOfMemoryError("Give it more memory.")

    stop(tmp_path, 3, check=False)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "planned_waves", refuse)
        with pytest.raises(OutOfMemoryError):
            job(tmp_path, check=False)
    forming.clear()
    job(tmp_path, check=False)
    assert forming == []


def test_a_note_of_another_job_is_not_taken(tmp_path: Path, stop: Stop) -> None:
    stop(tmp_path / "a", 3)
    stop(tmp_path / "b", 3, seed=5)
    note = "verification.json"
    (tmp_path / "b" / FOLDER / note).write_bytes((tmp_path / "a" / FOLDER / note).read_bytes())
    with pytest.raises(RunFolderError, match=f"{note} is damaged: it is of another job"):
        job(tmp_path / "b", seed=5)


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_the_seconds_of_all_runs_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop) -> None:
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)
    monkeypatch.setattr(sittings, "time", clock)
    original = BatchedLanczos.step

    def step(state: BatchedLanczos) -> int:
        clock.now += 7.0
        return original(state)

    monkeypatch.setattr(BatchedLanczos, "step", step)
    stop(tmp_path, 2, check=False)
    stop(tmp_path, 3, check=False)
    manifest = job(tmp_path, check=False).manifest
    assert manifest["seconds"] == 42.0
    assert [sitting["seconds"] for sitting in manifest["sittings"]] == [14.0, 7.0, 21.0]
    assert manifest["sittings"][0]["threads"] == torch.get_num_threads()
    assert {"backend", "instruction_set", "device_name", "torch_instruction_set"} < manifest.keys()


def test_a_run_under_other_conditions_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop
) -> None:
    stop(tmp_path, 3, check=False)
    original = environment.environment

    def elsewhere(operator: Any) -> Any:
        return {**original(operator), "threads": 77, "instruction_set": "abacus"}

    for module in ("identity", "runner"):
        monkeypatch.setattr(f"hvp_engine.jobs.{module}.environment", elsewhere)
    with pytest.warns(RuntimeWarning, match=r"instruction_set \w+ there, abacus here; threads \d+ there, 77 here"):
        found = job(tmp_path, check=False)
    assert found.manifest["threads"] == 77
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        job(tmp_path, check=False)  # what is complete is returned, and nothing goes on


def test_a_result_is_the_same_when_it_is_returned_again(tmp_path: Path) -> None:
    first, again = job(tmp_path), job(tmp_path)
    assert same(first, again) and first.manifest == again.manifest


@pytest.mark.parametrize(
    ("writing", "work", "pause"),
    [
        (0.1, 1e5, 30.0),  # cheap: nothing is gained by waiting longer
        (4.0, 100.0, 30.0),
        (4.0, 1000.0, 50.0),  # 5 % of the work
        (4.0, 1e5, 80.0),  # 5 % of the time spent on writing
        (20.0, 100.0, 60.0),  # a disk that slow must not take over
    ],
)
def test_no_more_than_half_a_minute_or_a_twentieth_of_the_work_can_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writing: float, work: float, pause: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(checkpoint, "time", clock)

    def write(*_: object) -> None:
        clock.now += writing

    monkeypatch.setattr(checkpoint.Checkpoint, "_save", write)
    with checkpoint.Checkpoint(tmp_path, {"seed": 0}) as kept:
        kept.worked_before = work - writing
        kept.save(0, None)  # type: ignore[arg-type]
        clock.now += pause - 1.0
        assert not kept.due(0.5)
        assert kept.due(1.5)  # the step would end too late
