from __future__ import annotations

import math

import pytest
import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.lanczos_step import record_step, record_step_ref
from hvp_engine.kernels.streams import LanczosState, NewVector, Step

STEPS = 4


def make_state(streams, last=STEPS):
    alphas, betas = torch.zeros((2, streams, STEPS), dtype=torch.float64)
    lost, norms = torch.zeros((2, streams), dtype=torch.float64)
    steps, live = torch.zeros(streams, dtype=torch.int64), torch.ones(streams, dtype=torch.bool)
    return LanczosState(alphas, betas, steps, live, lost, norms, torch.full((streams,), last))


def step(position, members, alphas, betas, lost=None, tolerance=1e-10):
    lost = [0.0] * len(members) if lost is None else lost
    found = (torch.tensor(x, dtype=torch.float64) for x in (alphas, betas, lost))
    return Step(members, position, *found, tolerance)


@pytest.mark.parametrize("function", [record_step, record_step_ref])
def test_a_live_stream_is_recorded_and_its_next_vector_has_norm_one(function):
    state, vector = make_state(2), torch.tensor([3.0, 4.0])
    store, window = torch.empty(2, dtype=torch.bfloat16), torch.empty(2)
    function(state, step(0, [1], [2.0], [5.0], [0.25]), [NewVector(0, vector, store, window)])
    function(state, step(1, [1], [-3.0], [1.0], [0.125]), [])
    assert state.alphas[1, :2].tolist() == [2.0, -3.0]
    assert state.betas[1, :2].tolist() == [5.0, 1.0]
    assert (state.norms[1], state.lost[1], state.steps[1]) == (9.0, 0.25, 2)
    assert torch.equal(window, torch.tensor([0.6, 0.8]))
    assert torch.equal(store, window.bfloat16())
    assert state.live.tolist() == [True, True]
    assert not state.alphas[0].any()


def test_a_stream_ends_when_beta_is_small_beside_its_norm():
    state, store = make_state(3), torch.full((3, 2), math.nan)
    found = step(0, [0, 1, 2], [1e6, 1e6, 0.0], [1e-4, 1e-3, 0.0], tolerance=1e-10)
    record_step(state, found, [NewVector(s, torch.ones(2), store[s], None) for s in range(3)])
    assert state.live.tolist() == [False, True, False]
    assert state.steps.tolist() == [1, 1, 1]
    assert state.betas[:, 0].tolist() == [0.0, 1e-3, 0.0]
    assert not store[[0, 2]].any()


@pytest.mark.parametrize("function", [record_step, record_step_ref])
def test_a_stream_ends_at_its_last_step_and_keeps_what_was_left(function):
    state = make_state(2, last=1)
    function(state, step(0, [0, 1], [1.0, 1.0], [0.5, 1e-12]), [])
    assert not state.live.any()
    assert state.betas[:, 0].tolist() == [0.5, 0.0]  # the second one's space was exhausted by the same step


def test_a_stream_that_ended_keeps_its_scalars():
    state = make_state(1)
    state.live[0] = False
    before = [x.clone() for x in state]
    record_step(state, step(0, [0], [1.0], [1.0], [0.5]), [NewVector(0, torch.ones(2), torch.empty(2), None)])
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))


@pytest.mark.parametrize(("alpha", "beta"), [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (1.0, math.inf)])
def test_a_number_that_is_not_finite_ends_the_stream_and_shows(alpha, beta):
    state = make_state(1)
    record_step(state, step(0, [0], [alpha], [beta]), [])
    assert not state.live[0]
    assert not (state.alphas[0, 0] + state.betas[0, 0]).isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 4}, "position=4"),
        ({"members": [2]}, "do not fit a state"),
        ({"live": torch.ones(2)}, "state.live must be contiguous torch.bool"),
        ({"store": torch.zeros(6)}, "contiguous"),
        ({"store": torch.zeros(5).half()}, "bf16 or fp64 basis"),
        ({"window": torch.zeros(5).double()}, "use one dtype"),
        ({"betas": torch.zeros(2, 4)}, "state.betas"),
        ({"lost": torch.zeros(3, dtype=torch.float64)}, "lost"),
        ({"lost": torch.zeros(1, device="meta", dtype=torch.float64)}, "lost"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_with_its_cause(change, message):
    new = NewVector(0, torch.zeros(5), torch.zeros(5, dtype=torch.bfloat16), torch.zeros(5))
    parts = (make_state(2), step(0, [1], [0.0], [1.0]), new)
    state, found, new = (p._replace(**{k: v for k, v in change.items() if k in p._fields}) for p in parts)
    with pytest.raises(ConfigurationError, match=message):
        record_step(state, found, [new])


def test_a_step_without_members_is_refused():
    with pytest.raises(ConfigurationError, match=r"The step has no members; give the row .*\.$"):
        record_step(make_state(2), step(0, [], [], []), [])
