"""The recorded Lanczos step, run from its own source on the CPU, against the rule of the recurrence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_cases import ORDERS

TOLERANCE = 16 * 2.0**-23
STEPS = 6


def new_state(num):
    return [
        np.zeros((num, STEPS)),
        np.zeros((num, STEPS)),
        np.zeros(num),
        np.zeros(num),
        np.zeros(num, dtype=np.int64),
        np.ones(num, dtype=bool),
    ]


def expected_state(state, rows, last_steps, alpha, beta, lost, position):
    """What krylov.lanczos decides on the host for the same numbers."""
    alphas, betas, norms, worst, steps, live = (a.copy() for a in state)
    for s, last, a, b, cosine in zip(rows, last_steps, alpha, beta, lost, strict=True):
        if not live[s]:
            continue
        before = betas[s, position - 1] if position else 0.0
        norms[s] = max(norms[s], abs(a) + b + before)
        alphas[s, position], steps[s], worst[s] = a, position + 1, max(worst[s], cosine)
        exhausted = b <= TOLERANCE * norms[s]
        if not exhausted:
            betas[s, position] = b
        live[s] = not exhausted and position + 1 < last
    return [alphas, betas, norms, worst, steps, live]


def make_streams(vector_dtype, store_dtype, windowed):
    sizes, rows, last_steps = (1, 33, 4097, 500, 129), (4, 2, 0, 1, 3), (6, 6, 6, 6, 2)
    torch.manual_seed(0)
    streams = []
    for n, row, last in zip(sizes, rows, last_steps, strict=True):
        store = None if store_dtype is None else torch.full((n,), 7.0, dtype=store_dtype)
        window = torch.full((n,), 7.0, dtype=vector_dtype) if windowed else None
        streams.append((torch.randn(n, dtype=torch.float64).to(vector_dtype), store, window, row, last))
    return streams, rows, last_steps


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("vector_dtype", "store_dtype", "windowed"),
    [
        (torch.float32, torch.float32, False),
        (torch.float32, torch.bfloat16, True),
        (torch.float64, torch.float64, False),
        (torch.float64, torch.bfloat16, True),
        (torch.float32, None, True),
    ],
)
def test_two_steps_follow_the_rule_of_the_recurrence(emulator, order, vector_dtype, store_dtype, windowed):
    streams, rows, last_steps = make_streams(vector_dtype, store_dtype, windowed)
    state = new_state(len(streams))
    lost = np.array([1e-9, 0.0, 3e-8, 0.0, 1e-7])
    alphas = (np.array([1.0, -2.0, 3.0, 0.5, 1.0]), np.array([1.5, 2.0, -1.0, 0.25, 2.0]))
    betas = (np.array([1.0, 0.7, 0.3, 1e-9, 2.0]), np.array([1e-12, 0.5, 0.9, 5.0, 1.0]))
    for position, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
        wanted = expected_state(state, rows, last_steps, alpha, beta, lost, position)
        found, written = emulator.record_step(
            streams,
            state,
            alpha=alpha,
            beta=beta,
            lost=lost,
            position=position,
            tolerance=TOLERANCE,
            order=order,
        )
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
        for (vector, store, window, row, _), b, (new_store, new_window) in zip(streams, beta, written, strict=True):
            row_wanted = (vector.double() / b if wanted[5][row] else torch.zeros(len(vector))).to(vector_dtype)
            assert window is None or torch.equal(new_window, row_wanted)
            assert store is None or torch.equal(new_store, row_wanted.to(store_dtype))
        state = found
    assert state[5].tolist() == [True, False, True, False, False]
    assert state[1][rows[4], 1] == 1.0  # what the last step left


def test_a_product_that_is_not_finite_ends_its_stream_and_shows_in_the_coefficients(emulator):
    streams, rows, _ = make_streams(torch.float32, torch.float32, False)
    alpha, beta = np.array([np.nan, 1.0, 1.0, 1.0, 1.0]), np.array([np.nan, np.inf, 1.0, 1.0, 1.0])
    found, written = emulator.record_step(
        streams,
        new_state(len(streams)),
        alpha=alpha,
        beta=beta,
        lost=np.zeros(5),
        position=0,
        tolerance=TOLERANCE,
    )
    assert np.isnan(found[0][rows[0], 0])
    assert np.isinf(found[1][rows[1], 0])
    assert found[5][list(rows)].tolist() == [False, False, True, True, True]
    assert not written[0][0].any()
    assert not written[1][0].any()
