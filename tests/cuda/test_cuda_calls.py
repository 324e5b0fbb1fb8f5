"""The Python side of the CUDA kernels, as far as a machine without a device reaches it."""

from __future__ import annotations

import types

import pytest
import torch

from hvp_engine.config import config, show_config
from hvp_engine.errors import BackendError, ConfigurationError
from hvp_engine.kernels import loader
from hvp_engine.kernels.cuda_kernels import record_step_cuda, reorthogonalize_cuda, tridiagonal_quadrature_cuda
from hvp_engine.kernels.lanczos_step import LanczosState, NewVector, Step
from hvp_engine.kernels.registry import available_backends, backend_for


def test_cpu_tensors_are_refused(monkeypatch):
    monkeypatch.setattr(loader, "native", types.SimpleNamespace(cuda_max_rows=100))
    with pytest.raises(ConfigurationError, match="not on cpu"):
        reorthogonalize_cuda([torch.zeros(2, 5)], [torch.zeros(5)], [1])
    with pytest.raises(ConfigurationError, match="not on cpu"):
        tridiagonal_quadrature_cuda(torch.ones(1, 2).double(), torch.ones(1, 1).double(), torch.tensor([2]))


def test_a_basis_with_more_rows_than_shared_memory_holds_is_refused(monkeypatch):
    monkeypatch.setattr(loader, "native", types.SimpleNamespace(cuda_max_rows=3))
    with pytest.raises(ConfigurationError, match=r"4 rows is more than the CUDA kernels take \(3\)"):
        reorthogonalize_cuda([torch.zeros(4, 5)], [torch.zeros(5)], [4])


def recorded(**changes):
    """Arguments of record_step_cuda for the second of two streams, some of their fields changed."""
    doubles = {"dtype": torch.float64}
    state = LanczosState(
        torch.zeros(2, 4, **doubles),
        torch.zeros(2, 4, **doubles),
        torch.zeros(2, dtype=torch.int64),
        torch.ones(2, dtype=torch.bool),
        torch.zeros(2, **doubles),
        torch.zeros(2, **doubles),
        torch.full((2,), 4),
    )
    step = Step([1], 0, torch.zeros(1, **doubles), torch.ones(1, **doubles), torch.zeros(1, **doubles), 1e-6)
    vector = NewVector(0, torch.zeros(5), torch.zeros(5, dtype=torch.bfloat16), torch.zeros(5))
    parts = [state, step, vector]
    return [part._replace(**{k: v for k, v in changes.items() if k in part._fields}) for part in parts]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 4}, "position 4"),
        ({"members": [2]}, "do not fit a state"),
        ({"live": torch.ones(2)}, "state.live must be contiguous torch.bool"),
        ({"store": torch.zeros(6)}, "contiguous"),
        ({"store": torch.zeros(5).half()}, "bf16 or fp64 basis"),
        ({"window": torch.zeros(5).double()}, "use one dtype"),
        ({"betas": torch.zeros(1)}, "betas"),
        ({"lost": torch.zeros(3, dtype=torch.float64)}, "lost"),
        ({}, "not on cpu"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_with_its_cause(change, message):
    state, step, vector = recorded(**change)
    with pytest.raises(ConfigurationError, match=message):
        record_step_cuda(state, step, [vector])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, s: (a[0], b, s), "matrices, m"),
        (lambda a, b, s: (a, b[:, :1], s), "do not fit alphas"),
        (lambda a, b, s: (a, b, s.int()), "torch.int64"),
        (lambda a, b, s: (a.float(), b, s), "must be float64"),
    ],
)
def test_matrices_that_do_not_fit_are_refused_with_their_cause(change, message):
    arguments = (torch.ones(2, 3).double(), torch.ones(2, 2).double(), torch.tensor([3, 1]))
    with pytest.raises(ConfigurationError, match=message):
        tridiagonal_quadrature_cuda(*change(*arguments))


@pytest.mark.parametrize(
    ("native", "message"),
    [
        (types.SimpleNamespace(cuda_built=False), "built without CUDA"),
        (types.SimpleNamespace(cuda_built=True, cuda_why_not=lambda: "no driver"), "reports: no driver"),
    ],
)
def test_the_reason_why_cuda_is_missing_is_told(monkeypatch, native, message):
    monkeypatch.setattr(loader, "native", native)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "cuda")
    device = torch.device("cuda", 0)
    assert "cuda" not in available_backends(device)
    with pytest.raises(BackendError, match=message):
        backend_for(device)


def test_with_kernels_and_a_driver_the_backend_is_offered_for_cuda_devices_only(monkeypatch):
    monkeypatch.delenv("HVP_ENGINE_BACKEND", raising=False)
    working = types.SimpleNamespace(cuda_built=True, cuda_why_not=lambda: None)
    monkeypatch.setattr(loader, "native", working)
    assert "cuda" in available_backends(torch.device("cuda", 0))
    assert "cuda" not in available_backends(torch.device("cpu"))


def test_the_configuration_tells_whether_the_kernels_can_run(capsys):
    reason = config()["cuda_missing_reason"]
    assert reason == loader.cuda_missing_reason()
    show_config()
    assert f"cuda kernels    {reason or 'available'}" in capsys.readouterr().out
