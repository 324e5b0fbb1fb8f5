"""Batched Lanczos gives the same T however rarely the host synchronises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hvp_engine.errors import ObjectiveError
from hvp_engine.krylov.lanczos import BatchedLanczos, Matmat
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.registry import Storage
from hvp_engine.krylov.settings import LanczosSettings

# One block ends by breakdown after 3 steps, one at its length of 2, one goes on to the last step.
DIAGONALS = {
    "repeated": torch.tensor([0.0, 1.0, 5.0]).repeat_interleave(20),
    "short": torch.tensor([1.0, 2.0]),
    "long": torch.linspace(-1, 2, 90),
}
STEPS = 14


def multiply(vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: block * DIAGONALS[name].to(block.dtype) for name, block in vectors.items()}


def start(matmat: Matmat, dtype: torch.dtype = torch.float64, **options: Any) -> BatchedLanczos:
    settings = {"reorthogonalize": "full", "storage": Storage(dtype), **options.pop("settings", {})}
    starts = {
        name: {k: probe(0, name, k, len(d), "gaussian", dtype) for k in range(2)} for name, d in DIAGONALS.items()
    }
    return BatchedLanczos(matmat, starts, LanczosSettings(STEPS, **settings), dtype, torch.device("cpu"), **options)


def finish(state: BatchedLanczos) -> list[int]:
    """How many streams took part in each step."""
    taken = []
    while not state.finished:
        taken.append(state.step())
    return taken


@pytest.mark.parametrize("sync_every", [4, 5, 100])
@pytest.mark.parametrize(
    "settings", [{}, {"storage": Storage(torch.bfloat16)}, {"reorthogonalize": "none"}], ids=["full", "bf16", "none"]
)
def test_rare_synchronisations_change_no_result(sync_every: int, settings: dict[str, Any]) -> None:
    dtype = torch.float32 if settings else torch.float64
    each, rare = (start(multiply, dtype, sync_every=n, settings=settings) for n in (1, sync_every))
    finish(each)
    finish(rare)
    for found, wanted in zip(rare.state, each.state, strict=True):
        assert torch.equal(found, wanted)
    if not settings:
        assert each.steps.tolist() == [3, 3, 2, 2, STEPS, STEPS]


@pytest.mark.parametrize("sync_every", [1, 4])
def test_a_residual_is_what_the_last_step_left_and_zero_where_the_space_is_exhausted(sync_every: int) -> None:
    state = start(multiply, sync_every=sync_every)
    finish(state)
    for s in (4, 5):
        q = state.basis.newest(STEPS - 1, "long")[s - 4]
        before = [state._basis._store["long"][s - 4, j] for j in range(STEPS)]  # type: ignore[union-attr]
        left = DIAGONALS["long"] * q
        for vector in before * 2:
            left -= (vector @ left) * vector
        assert state.residuals[s] == pytest.approx(float(left.norm()), rel=1e-9)
    assert state.residuals[:4].tolist() == [0.0] * 4


@pytest.mark.parametrize(("reorthogonalize", "residual"), [("full", 0.0), ("none", 0.25)])
def test_only_an_orthogonal_stream_has_found_everything_after_as_many_steps_as_parameters(
    reorthogonalize: str, residual: float
) -> None:
    state = start(multiply, settings={"reorthogonalize": reorthogonalize})
    finish(state)
    assert state.steps[2] == 2
    state.state.betas[2, 1] = 0.25  # larger than the rounding that it is here
    assert state.residuals[2] == residual


def test_ended_streams_leave_the_sweeps_when_the_host_synchronises() -> None:
    # That "short" ends after two steps is known without synchronising.
    assert finish(start(multiply, sync_every=1)) == [6, 6, 4] + [2] * 11
    assert finish(start(multiply, sync_every=4)) == [6, 6, 4, 4] + [2] * 10


def test_a_state_may_be_saved_only_after_a_synchronisation() -> None:
    state = start(multiply, sync_every=3)
    consistent = [state.consistent]
    for _ in range(6):
        state.step()
        consistent.append(state.consistent)
    assert consistent == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("sync_every", [1, 4])
@pytest.mark.parametrize("fails_at", [5, 7])
def test_a_product_that_is_not_finite_is_named_with_its_step(sync_every: int, fails_at: int) -> None:
    calls = 0

    def failing(vectors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal calls
        products = multiply(vectors)
        if calls == fails_at:
            products["long"][1, 3] = torch.nan
        calls += 1
        return products

    state = start(failing, sync_every=sync_every)
    with pytest.raises(ObjectiveError, match=rf"block 'long' \(probe 1\) is not finite at step {fails_at}"):
        finish(state)
    assert calls <= 8
    assert state.consistent == (sync_every == 1)


def test_a_run_that_is_resumed_in_the_middle_gives_the_same_result() -> None:
    whole, first, second = (start(multiply, sync_every=4) for _ in range(3))
    finish(whole)
    for _ in range(4):
        first.step()
    for mine, saved in zip(second.state, first.state, strict=True):
        mine.copy_(saved)
    second.basis.restore(0, 5, first.basis.export(0, 5))
    second.basis.restore_window(first.basis.export_window())
    second.resume(4)
    finish(second)
    assert torch.equal(second.state.alphas, whole.state.alphas)
    assert torch.equal(second.state.betas, whole.state.betas)


def test_streams_that_are_stopped_leave_the_sweeps_and_keep_what_they_found() -> None:
    whole, stopped = start(multiply), start(multiply)
    finish(whole)
    for _ in range(6):
        stopped.step()
    assert stopped.left == 2 * (STEPS - 6)
    stopped.stop({"long"})
    assert stopped.finished and stopped.left == 0
    assert stopped.steps.tolist() == [3, 3, 2, 2, 6, 6]
    for mine, wanted in ((stopped.alphas, whole.alphas), (stopped.betas, whole.betas)):
        assert (mine[4:, :6] == wanted[4:, :6]).all() and not mine[4:, 6:].any()
    assert (stopped.residuals[4:] == whole.betas[4:, 5]).all()
    assert stopped.residuals[4:].all() and not stopped.residuals[:4].any()
    again = start(multiply)
    for mine, saved in zip(again.state, stopped.state, strict=True):
        mine.copy_(saved)
    again.resume(6)
    assert again.finished


def test_a_block_may_be_given_fewer_steps_than_the_others() -> None:
    whole, limited = start(multiply), start(multiply, limits={"long": 9, "repeated": 2})
    finish(whole)
    finish(limited)
    assert limited.steps.tolist() == [2, 2, 2, 2, 9, 9]
    assert (limited.alphas[4:, :9] == whole.alphas[4:, :9]).all()
    assert (limited.residuals[4:] == whole.betas[4:, 8]).all()
