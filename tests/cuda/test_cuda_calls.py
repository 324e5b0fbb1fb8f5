"""The Python side of the CUDA kernels, as far as a machine without a device reaches it."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch

from hvp_engine.config import config, show_config
from hvp_engine.errors import BackendError, ConfigurationError
from hvp_engine.kernels import loader, registry
from hvp_engine.kernels.cuda.tridiagonal import tridiagonal_quadrature
from hvp_engine.kernels.lanczos_step import record_step
from hvp_engine.kernels.registry import available_backends, backend_for
from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.kernels.streams import LanczosState, NewVector, Step


@pytest.fixture
def only_cuda(monkeypatch):
    """Lets the CUDA modules serve tensors on the CPU, which they must refuse."""
    monkeypatch.setattr(registry, "_BACKENDS", (registry.Backend("cuda", lambda device: None),))


def test_cpu_tensors_are_refused(only_cuda, monkeypatch):
    monkeypatch.setattr(loader, "native", types.SimpleNamespace(cuda_max_rows=100))
    with pytest.raises(ConfigurationError, match="not on cpu"):
        reorthogonalize([torch.zeros(2, 5)], [torch.zeros(5)], [1])
    doubles = {"dtype": torch.float64}
    state = LanczosState(
        *torch.zeros((2, 2, 4), **doubles),
        torch.zeros(2, dtype=torch.int64),
        torch.ones(2, dtype=torch.bool),
        *torch.zeros((2, 2), **doubles),
        torch.full((2,), 4),
    )
    found = torch.ones((3, 1), **doubles)
    with pytest.raises(ConfigurationError, match="not on cpu"):
        record_step(state, Step([1], 0, *found, 1e-6), [NewVector(0, torch.zeros(5), torch.zeros(5), None)])
    with pytest.raises(ConfigurationError, match="not on cpu"):
        tridiagonal_quadrature(
            np.ones((1, 2)), np.ones((1, 1)), np.array([2]), torch.device("cpu"), np.empty((1, 2)), np.empty((1, 2))
        )


def test_a_basis_with_more_rows_than_shared_memory_holds_is_refused(only_cuda, monkeypatch):
    monkeypatch.setattr(loader, "native", types.SimpleNamespace(cuda_max_rows=3))
    with pytest.raises(ConfigurationError, match=r"4 rows is more than the CUDA kernels take \(3\)"):
        reorthogonalize([torch.zeros(4, 5)], [torch.zeros(5)], [4])


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
