from __future__ import annotations

import importlib.util

import pytest
import torch

import hvp_engine as he
from hvp_engine.errors import BackendError
from hvp_engine.kernels import attention, loader
from hvp_engine.kernels.registry import available_backends, backend_for, host_backend
from hvp_engine.kernels.tensors import is_fused

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_wish(monkeypatch):
    monkeypatch.delenv("HVP_ENGINE_BACKEND", raising=False)


def test_native_is_the_first_choice_on_the_cpu():
    assert backend_for(CPU) == "native"
    assert available_backends(CPU) == ["native", "torch"]


def test_only_the_reference_serves_a_device_without_kernels():
    assert backend_for(torch.device("meta")) == "torch"


def test_the_environment_is_read_at_every_call(monkeypatch):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "torch")
    assert backend_for(CPU) == "torch"
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "native")
    assert backend_for(CPU) == "native"


@pytest.mark.parametrize("wish", ["triton", "cuda", "nonsense"])
def test_a_backend_that_is_not_there_is_refused_with_the_available_ones(monkeypatch, wish):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    with pytest.raises(BackendError, match=f"{wish} cannot be used on cpu.*Available there: native, torch"):
        backend_for(CPU)


@pytest.mark.parametrize("wish", ["triton", "cuda", ""])
def test_a_wish_for_a_gpu_leaves_the_scalars_on_the_host_free(monkeypatch, wish):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    assert host_backend() == "native"


@pytest.mark.parametrize("wish", ["torch", "native"])
def test_a_wish_for_a_backend_of_the_cpu_holds_for_the_scalars(monkeypatch, wish):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    assert host_backend() == wish


def test_native_is_refused_where_its_kernels_cannot_run(monkeypatch):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "native")
    with pytest.raises(BackendError, match="CPU only"):
        backend_for(torch.device("meta"))


def test_without_the_extension_the_reference_serves_after_a_warning(monkeypatch):
    monkeypatch.setattr(loader, "missing_reason", "it was not built")
    monkeypatch.setattr(loader, "_warned", False)
    with pytest.warns(RuntimeWarning, match="it was not built"):
        assert backend_for(CPU) == "torch"
    assert backend_for(CPU) == "torch"
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "native")
    with pytest.raises(BackendError, match="it was not built"):
        backend_for(CPU)


def pretend_gpu(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    return torch.device("cuda", 0)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0)])
def test_triton_serves_gpus_from_capability_8_on(monkeypatch, capability):
    assert backend_for(pretend_gpu(monkeypatch, capability)) == "triton"


def test_triton_is_refused_on_an_older_gpu(monkeypatch):
    device = pretend_gpu(monkeypatch, (7, 5))
    assert "triton" not in available_backends(device)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "triton")
    with pytest.raises(BackendError, match=r"capability 7\.5, it needs 8\.0"):
        backend_for(device)


def test_a_gpu_without_triton_installed_says_so(monkeypatch):
    device = pretend_gpu(monkeypatch, (8, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "triton")
    with pytest.raises(BackendError, match="triton is not installed"):
        backend_for(device)


@pytest.mark.parametrize("wish", ["triton", "cuda", "native", "torch", "nonsense"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_predicates_never_raise_whatever_backend_is_asked_for(monkeypatch, wish, device):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    tensor = torch.zeros(1, 2, 3, 4, device=device)
    assert is_fused(tensor) == (wish not in ("torch", "cuda"))
    assert attention.can_run(tensor, None) == (wish not in ("torch", "cuda"))


@pytest.mark.parametrize("wish", ["triton", "nonsense"])
@pytest.mark.parametrize("call", ["gelu", "softmax", "layer_norm", "attention", "cross_entropy", "embedding"])
def test_a_kernel_that_cannot_run_is_refused_when_it_is_called(monkeypatch, wish, call):
    x, rows = torch.randn(1, 2, 3, 4), torch.randn(3, 4)
    calls = {
        "gelu": lambda: he.ops.gelu(x),
        "softmax": lambda: he.ops.softmax(x),
        "layer_norm": lambda: he.ops.layer_norm(x, (4,)),
        "attention": lambda: he.ops.attention(x, x, x),
        "cross_entropy": lambda: he.ops.cross_entropy(rows, torch.tensor([0, 1, 2])),
        "embedding": lambda: he.ops.embedding(torch.tensor([0, 1]), rows),
    }
    calls[call]()
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    with pytest.raises(BackendError, match=f"{wish} cannot be used on cpu.* Unset HVP_ENGINE_BACKEND"):
        calls[call]()


@pytest.mark.parametrize("wish", ["triton", "cuda"])
def test_a_job_on_the_cpu_with_a_gpu_backend_is_refused_with_the_way_out(monkeypatch, wish):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
    data = [(torch.randn(5, 3), torch.randint(0, 2, (5,)))]
    with pytest.raises(BackendError, match="CUDA devices only.*Available there: native, torch. Unset"):
        he.slq(model, he.losses.classification, data=data, steps=3, probes=1, progress=False)
