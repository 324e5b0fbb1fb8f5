"""The recorded step in Triton against its reference, and whole Lanczos runs on the Triton kernels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hvp_engine.kernels import registry
from hvp_engine.kernels.lanczos_step import record_step, record_step_ref
from hvp_engine.kernels.streams import LanczosState, NewVector, Step
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.registry import Storage
from hvp_engine.krylov.settings import LanczosSettings

SIZES = (1, 2, 31, 129, 4097, 31, 2, 48)
STEPS = 5


def make_case(position, vector_dtype, store_dtype, windowed):
    """A state in the middle of a run, and a step in which streams go on, end, have ended and fail."""
    torch.manual_seed(position)
    streams = len(SIZES) + 1  # the first one takes no part
    alphas, betas = torch.randn(2, streams, STEPS, dtype=torch.float64).abs()
    lost, norms = torch.rand(2, streams, dtype=torch.float64)
    live = torch.ones(streams, dtype=torch.bool)
    live[4] = False
    steps = torch.full((streams,), position)
    state = LanczosState(alphas, betas, steps, live, lost, norms, torch.full((streams,), STEPS))
    state.last[[2, 3]] = position + 1  # at its last step; at it, and exhausted by it
    found = torch.randn(len(SIZES), 3, dtype=torch.float64)
    alpha, beta = found[:, position % 3], torch.rand(len(SIZES), dtype=torch.float64) + 0.1
    beta[2] = 1e-17
    alpha[5], beta[6] = math.nan, math.inf
    step = Step(list(range(1, streams)), position, alpha, beta, torch.rand(len(SIZES)).double(), 1e-15)
    vectors = []
    for i, n in enumerate(SIZES):
        if i not in (1, 2):  # the ones at their last step have no room
            store = None if store_dtype is None else torch.full((n,), math.nan, dtype=store_dtype)
            window = torch.full((n,), math.nan, dtype=vector_dtype) if windowed else None
            vectors.append(NewVector(i, torch.randn(n, dtype=torch.float64).to(vector_dtype), store, window))
    return state, step, vectors


@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("position", [0, 3])
@pytest.mark.parametrize(
    ("vector_dtype", "store_dtype", "windowed"),
    [
        (torch.float32, torch.float32, False),
        (torch.float32, torch.bfloat16, True),
        (torch.float32, None, True),
        (torch.float64, torch.float64, False),
    ],
)
def test_the_step_is_recorded_as_by_the_reference(interpreter, position, vector_dtype, store_dtype, windowed):
    found, wanted = (make_case(position, vector_dtype, store_dtype, windowed) for _ in range(2))
    for new in found[2]:
        interpreter.reach(*(tensor for tensor in new[1:] if tensor is not None))
    record_step(*found)
    record_step_ref(*wanted)
    assert found[0].betas[2, position] == found[1].betas[1]
    for mine, reference in zip(found[0], wanted[0], strict=True):
        assert torch.equal(mine.nan_to_num(), reference.nan_to_num())
        assert torch.equal(mine.isnan(), reference.isnan())
    for mine, reference in zip(found[2], wanted[2], strict=True):
        for a, b in zip(mine[2:], reference[2:], strict=True):
            if b is not None:
                torch.testing.assert_close(a, b, rtol=torch.finfo(b.dtype).eps, atol=0.0)


@pytest.mark.parametrize("basis_dtype", [torch.float32, torch.bfloat16])
def test_lanczos_on_the_triton_kernels_agrees_with_the_cpu(interpreter, monkeypatch, basis_dtype):
    diagonals = {"repeated": torch.tensor([0.0, 1.0, 5.0]).repeat_interleave(11), "long": torch.linspace(-1, 2, 64)}

    def run(sync_every):
        starts = {
            b: {k: probe(0, b, k, len(d), "gaussian", torch.float32) for k in range(2)} for b, d in diagonals.items()
        }
        state = BatchedLanczos(
            multiply,
            starts,
            LanczosSettings(6, "full", Storage(basis_dtype)),
            torch.float32,
            torch.device("cpu"),
            sync_every,
        )
        slots = [(b, k) for b in diagonals for k in range(2)]
        targets = [target for position in range(6) for target in state.basis.targets(position, slots)]
        interpreter.reach(*(t for target in targets for t in target if t is not None))
        while not state.finished:
            state.step()
        return state

    def multiply(vectors):
        products = {name: block * diagonals[name] for name, block in vectors.items()}
        interpreter.reach(*products.values())
        return products

    wanted = run(1)
    monkeypatch.setattr(registry, "_BACKENDS", (registry.Backend("triton", lambda device: None),))
    registry.forget_choices()
    found = run(4)
    assert found.steps.tolist() == wanted.steps.tolist() == [3, 3, 6, 6]
    np.testing.assert_allclose(found.alphas, wanted.alphas, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.betas, wanted.betas, rtol=1e-4, atol=1e-5)
    assert max(found.orthogonality().values()) <= (1e-5 if basis_dtype == torch.float32 else 8 * 2.0**-9)
