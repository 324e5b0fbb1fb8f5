"""Adaptive jobs where memory is tight: what is refused, and what gives way."""

from __future__ import annotations

from pathlib import Path

import pytest
from adaptive_jobs import NAMES, job, rule, same

from hvp_engine.errors import OutOfMemoryError
from hvp_engine.krylov import stopping
from hvp_engine.krylov.wave import Wave
from hvp_engine.scheduling import rounds


def test_a_job_whose_vectors_do_not_fit_is_refused_before_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wave, "step", lambda wave: pytest.fail("a step was taken"))
    with pytest.raises(OutOfMemoryError, match="One stream of block"):
        job(memory=150_000)


def test_a_matrix_that_does_not_fit_gives_way_to_streams_and_does_so_when_memory_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"tolerance": 0.3, "steps": 50, "probes": 10}
    monkeypatch.setattr(rounds, "is_exact", lambda numel, settings: numel in (20, 320))
    wanted = job(memory=200_000, **limits)
    stopped = {name: account["stopped_by"] for name, account in wanted.manifest["adaptive"]["blocks"].items()}
    assert stopped["0.weight"] == "tolerance" and stopped["0.bias"] == "exact"
    original, taken = Wave.step, 0

    def step(wave: Wave) -> int:
        nonlocal taken
        taken += 1
        if taken == 12:
            raise KeyboardInterrupt
        return original(wave)

    monkeypatch.setattr(Wave, "step", step)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, memory=200_000, **limits)
    same(job(tmp_path, **limits), wanted)
    assert job(**limits).manifest["adaptive"]["blocks"]["0.weight"]["stopped_by"] == "exact"


def test_a_later_round_asks_for_no_matrix_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "judge", rule(dict.fromkeys(NAMES, (10, 60))))
    monkeypatch.setattr(rounds, "is_exact", lambda numel, settings: numel == 20)
    found = job(memory=200_000)
    assert found["0.weight"].steps.tolist() == [10] * 10
    assert found.manifest["adaptive"]["blocks"]["4.weight"]["stopped_by"] == "exact"
