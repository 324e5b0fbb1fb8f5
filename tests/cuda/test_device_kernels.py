"""The CUDA kernels called as on a GPU: Python facade, bindings, launchers and kernels on an emulated device."""

from __future__ import annotations

import mmap
import os
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from cuda_cases import BASIS_DTYPES, VECTOR_DTYPES, streams, tridiagonals
from device_process import on_device

from hvp_engine.errors import BackendError, ConfigurationError, HvpEngineError
from hvp_engine.kernels import loader
from hvp_engine.kernels.lanczos_step import record_step, record_step_ref
from hvp_engine.kernels.reorthogonalize import reorthogonalize, reorthogonalize_ref
from hvp_engine.kernels.streams import LanczosState, NewVector, Step
from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature, tridiagonal_quadrature_ref

pytestmark = pytest.mark.usefixtures("emulated_device")

CUDA = torch.device("cuda", 0)
RAGGED = [(1, 0), (2, 1), (31, 7), (129, 33), (4097, 5), (600, 64)]
STEPS = 4


def by_cuda_kernels():
    """A context in which the CUDA kernels serve the device rather than Triton's."""
    return patch.dict(os.environ, HVP_ENGINE_BACKEND="cuda")


def on_cuda(tensors):
    """Copies on the device that keep row strides, and the odd address that one more element in front gives."""
    moved = []
    for tensor in tensors:
        storage = torch.empty(tensor.numel() + tensor.shape[0] * 3 + 1, dtype=tensor.dtype, device=CUDA)
        stride = tensor.shape[-1] + (3 if tensor.dim() == 2 else 0)
        shape, strides = (tensor.shape, (stride, 1)[2 - tensor.dim() :])
        moved.append(storage.as_strided(shape, strides, 1).copy_(tensor))
    return moved


@on_device
def test_the_device_behaves_like_one():
    x = torch.tensor([1.0, 2.0], device=CUDA)
    assert x.is_cuda
    assert x.device == CUDA
    for wrong in (lambda: x + torch.ones(2), x.numpy, lambda: torch.ones(2, device="cuda:1") + x):
        with pytest.raises((RuntimeError, TypeError)):
            wrong()
    assert torch.empty(3, device=CUDA).isnan().all()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (x + 1).to("cpu", non_blocking=True)
        for waits in (x.cpu, x[0].item, lambda: x[x > 1], lambda: torch.ones(2).to(CUDA)):
            with pytest.raises(RuntimeError, match="synchronizing"):
                waits()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("vector_dtype", VECTOR_DTYPES)
@pytest.mark.parametrize("basis_dtype", BASIS_DTYPES)
@on_device
def test_reorthogonalisation_agrees_with_the_reference(basis_dtype, vector_dtype):
    from emulated_device import STREAM

    bases, vectors, counts = streams(RAGGED, basis_dtype, vector_dtype, seed=1)
    mine = on_cuda(vectors)
    with by_cuda_kernels():
        found = reorthogonalize(on_cuda(bases), mine, counts)
    wanted = reorthogonalize_ref(bases, vectors, counts)
    assert loader.native.last_stream() == STREAM
    tolerance = 1e-11 if vector_dtype == torch.float64 else 2e-6
    for a, b in zip((*found, *mine), (*wanted, *vectors), strict=True):
        assert a.device == CUDA
        torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance)


@on_device
def test_reorthogonalisation_copies_one_table_to_the_device():
    from hvp_engine.kernels.cuda import reorthogonalize as facade

    bases, vectors, counts = streams(RAGGED, torch.float32, torch.float32, seed=2)
    with by_cuda_kernels(), patch.object(facade, "to_device", wraps=facade.to_device) as copied:
        reorthogonalize(on_cuda(bases), on_cuda(vectors), counts)
    assert copied.call_count == 1


@pytest.mark.parametrize("position", [0, 2])
@pytest.mark.parametrize(
    ("vector_dtype", "store_dtype", "windowed"),
    [
        (torch.float32, torch.float32, False),
        (torch.float32, torch.bfloat16, True),
        (torch.float64, torch.float64, False),
        (torch.float32, None, True),
    ],
)
@on_device
def test_a_step_is_recorded_as_by_the_reference(position, vector_dtype, store_dtype, windowed):
    def case(device):
        generator = torch.Generator().manual_seed(position)
        sizes = (1, 31, 4097, 129, 5)
        doubles = torch.rand((4, len(sizes) + 1, STEPS), generator=generator, dtype=torch.float64).to(device) + 0.1
        alphas, betas = doubles[:2].contiguous()
        live = torch.tensor([True, True, True, False, True, True], device=device)
        steps, last = torch.full((2, 6), position, device=device)
        last = last + STEPS
        last[5] = position + 1
        state = LanczosState(alphas, betas, steps, live, doubles[2, :, 0].clone(), doubles[3, :, 0].clone(), last)
        found = torch.rand((5, 3), generator=generator, dtype=torch.float64) + 0.5
        found[1, 1] = 1e-18  # breaks down
        found = found.to(device)
        step = Step([1, 2, 3, 4, 5], position, found[:, 0], found[:, 1].clone(), found[:, 2].clone(), 1e-15)
        vectors = []
        for place, n in enumerate(sizes[:4]):  # the fifth takes its last step
            vector = torch.randn(n, generator=generator, dtype=torch.float64).to(device, vector_dtype)
            store = None if store_dtype is None else torch.empty(n, dtype=store_dtype, device=device)
            vectors.append(NewVector(place, vector, store, torch.empty_like(vector) if windowed else None))
        return state, step, vectors

    found, wanted = case(CUDA), case(torch.device("cpu"))
    with by_cuda_kernels():
        record_step(*found)
    record_step_ref(*wanted)
    for a, b in zip(found[0], wanted[0], strict=True):
        assert torch.equal(a.cpu(), b)
    for mine, reference in zip(found[2], wanted[2], strict=True):
        for a, b in zip(mine[2:], reference[2:], strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                torch.testing.assert_close(a.cpu(), b, rtol=torch.finfo(b.dtype).eps, atol=0.0)


@pytest.mark.parametrize("wish", ["cuda", ""])
@pytest.mark.parametrize(("num", "m"), [(1, 1), (2, 2), (5, 31), (33, 20)])
@on_device
def test_quadrature_agrees_with_the_reference_whichever_backend_serves_the_vectors(num, m, wish):
    alphas, betas, steps = tridiagonals(num, m)
    call = loader.native.cuda_tridiagonal_quadrature
    with (
        patch.dict(os.environ, HVP_ENGINE_BACKEND=wish),
        patch.object(loader.native, "cuda_tridiagonal_quadrature", Mock(side_effect=call)) as launched,
    ):
        nodes, weights = tridiagonal_quadrature(alphas, betas, steps, CUDA)
    assert launched.call_count == 1
    wanted, _ = tridiagonal_quadrature_ref(alphas, betas, steps)
    assert (np.abs(nodes - wanted) <= 1e-13 * np.abs(wanted).max(axis=1, keepdims=True)).all()
    assert np.allclose(weights.sum(axis=1), 1.0, rtol=0, atol=1e-13)


@on_device
def test_no_matrices_need_no_launch_and_a_matrix_that_does_not_converge_is_named():
    from hvp_engine.kernels.cuda import tridiagonal

    with by_cuda_kernels():
        nodes, weights = tridiagonal_quadrature(np.empty((0, 3)), np.empty((0, 2)), np.empty(0, np.int64), CUDA)
        assert nodes.shape == weights.shape == (0, 3)
        nan = torch.full((), 7, device=CUDA)
        found = (torch.ones(9, 2, device=CUDA).double(), torch.ones(9, 2, device=CUDA).double(), nan)
        with (
            patch.object(tridiagonal, "_on_device", lambda *arrays: found),
            pytest.raises(HvpEngineError, match="tridiagonal matrix 7 .*did not converge"),
        ):
            tridiagonal_quadrature(np.ones((9, 2)), np.ones((9, 1)), np.full(9, 2), CUDA)


@on_device
def test_what_does_not_fit_is_refused_with_its_cause():
    basis, vector = torch.zeros(2, 5, device=CUDA), torch.zeros(5, device=CUDA)
    for bases, vectors, counts, message in (
        ([basis.cpu()], [vector], [1], "basis on cpu, vector on cuda:0"),
        ([basis], [vector.cpu()], [1], "basis on cuda:0, vector on cpu"),
        ([basis.half()], [vector], [1], "torch.float16"),
        ([basis], [torch.zeros(10, device=CUDA)[::2]], [1], "contiguous"),
        ([basis], [vector], [3], "count 3"),
        ([basis], [vector[:4]], [1], "vector \\(4,\\)"),
        ([torch.zeros(4000, 5, device=CUDA)], [vector], [4000], "4000 rows"),
    ):
        with by_cuda_kernels(), pytest.raises(ConfigurationError, match=message):
            reorthogonalize(bases, vectors, counts)


@on_device
def test_a_launch_that_fails_is_an_error_of_the_package():
    from hvp_engine.kernels.cuda import queue

    basis, vector = torch.zeros(2, 5, device=CUDA), torch.zeros(5, device=CUDA)
    with (
        by_cuda_kernels(),
        patch.object(queue, "_index", lambda device: 3),
        pytest.raises(BackendError, match="invalid device ordinal"),
    ):
        reorthogonalize([basis], [vector], [2])


@on_device
def test_a_host_address_does_not_pass_for_one_of_the_device():
    # Mapped, not from the heap: that of an executable at a fixed place may lie below what the device takes for sizes.
    host = torch.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), dtype=torch.uint8)
    with pytest.raises(AssertionError, match="not an address of the device"):
        loader.native.cuda_tridiagonal_quadrature(1, 2, [host.data_ptr()] * 7, 0, 0)
