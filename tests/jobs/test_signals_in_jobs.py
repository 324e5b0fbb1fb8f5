"""What is left of a job that a signal ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from children import Child, job

import hvp_engine as he
from hvp_engine.krylov.lanczos import BatchedLanczos

IGNORING = "import signal; signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute as the children do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List the steps that this process takes."""
    taken: list[int] = []
    original = BatchedLanczos.step

    def step(state: BatchedLanczos) -> int:
        taken.append(state.position)
        return original(state)

    monkeypatch.setattr(BatchedLanczos, "step", step)
    return taken


def same(first: he.Spectra, second: he.Spectra) -> bool:
    return all(np.array_equal(first[name].alphas, second[name].alphas) for name in first)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGTERM, signal.SIGTERM]])
def test_a_signal_saves_the_work_and_ends_the_process(tmp_path: Path, steps: list[int], signals: list[int]) -> None:
    wanted = job(None)
    steps.clear()
    assert Child(tmp_path, hold_before=5).kill(*signals) == -signals[0]
    assert same(job(tmp_path), wanted)
    assert steps == [5, 6, 7]


def test_after_a_kill_the_last_checkpoint_counts(tmp_path: Path, steps: list[int]) -> None:
    wanted = job(None)
    steps.clear()
    assert Child(tmp_path, hold_before=5, every=0.0).kill(signal.SIGKILL) == -signal.SIGKILL
    assert same(job(tmp_path), wanted)
    assert steps[0] >= 3 and steps[-1] == 7


def test_a_second_ctrl_c_while_the_work_is_saved_costs_no_more_than_that(tmp_path: Path) -> None:
    wanted = job(None)
    assert Child(tmp_path, hold_before=5, every=0.0).kill(signal.SIGINT, signal.SIGINT) == -signal.SIGINT
    assert same(job(tmp_path), wanted)


def test_a_handler_of_the_caller_is_left_alone(tmp_path: Path) -> None:
    child = Child(tmp_path, hold_before=5, prelude=IGNORING)
    child.wait_until_it_holds()
    child.send(signal.SIGTERM, signal.SIGINT)
    code, printed = child.end()
    assert "mine" in printed and "KeyboardInterrupt" in printed
    assert code in (1, -signal.SIGINT)
