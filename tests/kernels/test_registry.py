from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import hvp_engine as he
from hvp_engine import config as configuration
from hvp_engine.errors import BackendError
from hvp_engine.kernels import attention, loader, registry
from hvp_engine.kernels.registry import (
    Backend,
    Refusal,
    available_backends,
    backend_for,
    families_of,
    forget_choices,
    host_implementation,
    implementation,
    is_fused,
    optional_implementation,
)
from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature

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
    assert optional_implementation("softmax", CPU) is None
    assert not is_fused("softmax", torch.zeros(3))
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "native")
    assert backend_for(CPU) == "native"
    assert implementation("softmax", CPU).__name__ == "hvp_engine.kernels.native.softmax"
    assert is_fused("softmax", torch.zeros(3))
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "torch")
    with pytest.raises(BackendError, match="HVP_ENGINE_BACKEND=torch has no softmax kernels for cpu"):
        implementation("softmax", CPU)
    assert not is_fused("softmax", torch.zeros(3))


def test_an_error_without_a_wish_does_not_advise_to_unset_it():
    with pytest.raises(BackendError, match=r"^No backend has softmax kernels for meta\. Use the plain [^,]*there\.$"):
        implementation("softmax", torch.device("meta"))


@pytest.mark.parametrize("wish", ["triton", "cuda", "nonsense"])
def test_a_backend_that_is_not_there_is_refused_with_the_available_ones(monkeypatch, wish):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    with pytest.raises(BackendError, match=f"{wish} cannot be used on cpu.*Available there: native, torch"):
        backend_for(CPU)


@pytest.mark.parametrize("wish", ["triton", "cuda", ""])
def test_a_wish_for_a_gpu_leaves_the_scalars_on_the_host_free(monkeypatch, wish):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    assert host_implementation("tridiagonal").__name__ == "hvp_engine.kernels.native.tridiagonal"


def test_a_wish_for_a_backend_of_the_cpu_holds_for_the_scalars(monkeypatch):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "torch")
    assert host_implementation("tridiagonal") is None
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "native")
    assert host_implementation("tridiagonal").__name__ == "hvp_engine.kernels.native.tridiagonal"
    monkeypatch.setattr(loader, "missing_reason", "it was not built")
    forget_choices()
    with pytest.raises(BackendError, match="it was not built"):
        host_implementation("tridiagonal")


def test_native_is_refused_where_its_kernels_cannot_run(monkeypatch):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "native")
    with pytest.raises(BackendError, match="CPU devices only"):
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


@pytest.mark.parametrize("wish", ["triton", "cuda"])
def test_scalars_of_a_job_on_a_gpu_go_without_the_extension_and_without_a_warning(monkeypatch, wish):
    monkeypatch.setattr(loader, "missing_reason", "it was not built")
    monkeypatch.setattr(loader, "_warned", False)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tridiagonal_quadrature(np.ones((1, 2)), np.ones((1, 1)), np.array([2]))
        assert available_backends(CPU) == ["torch"]
    monkeypatch.delenv("HVP_ENGINE_BACKEND")
    with pytest.warns(RuntimeWarning, match="it was not built"):
        assert not is_fused("softmax", torch.zeros(3))


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


@pytest.mark.parametrize("version", ["3.4.0", "3.4rc1", "3.10.0rc1+git1", "4.0.0"])
def test_triton_is_taken_from_3_4_on(monkeypatch, version):
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", version)
    assert backend_for(pretend_gpu(monkeypatch, (8, 0))) == "triton"


@pytest.mark.parametrize("version", ["2.3.1", "3.3.0", "unknown"])
def test_a_triton_too_old_for_the_kernels_is_passed_over(monkeypatch, version):
    monkeypatch.setattr(pytest.importorskip("triton"), "__version__", version)
    device = pretend_gpu(monkeypatch, (8, 0))
    assert backend_for(device) == "torch"
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "triton")
    with pytest.raises(BackendError, match=f"triton {version} is installed, its kernels need 3.4 or newer"):
        backend_for(device)


def test_a_gpu_without_triton_installed_says_so(monkeypatch):
    device = pretend_gpu(monkeypatch, (8, 0))
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "triton")
    with pytest.raises(BackendError, match="triton is not installed"):
        backend_for(device)


@pytest.fixture
def broken_triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Put a triton in front that cannot be imported."""
    (tmp_path / "triton.py").write_text('raise ImportError("libtriton.so: undefined symbol")')
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("broken_triton")
def test_a_triton_that_cannot_be_imported_is_passed_over(monkeypatch):
    device = pretend_gpu(monkeypatch, (8, 0))
    assert "triton" not in available_backends(device)
    assert optional_implementation("softmax", device) is None
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "triton")
    with pytest.raises(BackendError, match=r"triton cannot be imported \(libtriton.so: undefined symbol\)"):
        backend_for(device)
    assert is_fused("softmax", torch.zeros(3))
    assert attention.can_run(torch.zeros(1, 2, 3, 4), None)


def test_triton_is_not_imported_where_there_is_no_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "triton")
    with pytest.raises(BackendError, match="PyTorch finds no CUDA device"):
        backend_for(torch.device("cuda", 0))
    assert "triton" not in sys.modules


@pytest.mark.parametrize("failure", ["is_available", "get_device_capability"])
def test_a_driver_that_failed_once_is_asked_again(monkeypatch, failure):
    pytest.importorskip("triton")
    device = pretend_gpu(monkeypatch, (8, 0))

    def no_driver(device: torch.device) -> tuple[int, int]:
        raise RuntimeError("CUDA driver initialization failed")

    with monkeypatch.context() as failing:
        failing.setattr(torch.cuda, failure, no_driver if failure == "get_device_capability" else lambda: False)
        assert backend_for(device) == configuration._used_backend(device) == "torch"
        assert optional_implementation("softmax", device) is None
    assert implementation("softmax", device).__name__ == "hvp_engine.kernels.triton.softmax"
    assert available_backends(device)[0] == configuration._used_backend(device) == "triton"


def test_a_cuda_runtime_that_failed_once_is_asked_again(monkeypatch):
    device, answers = pretend_gpu(monkeypatch, (7, 5)), ["the driver is too old", None, "gone"]
    native = type("Native", (), {"cuda_built": True, "cuda_why_not": staticmethod(lambda: answers[0])})
    monkeypatch.setattr(loader, "native", native)
    for expected in (None, "hvp_engine.kernels.cuda.tridiagonal", "hvp_engine.kernels.cuda.tridiagonal"):
        found = optional_implementation("tridiagonal", device)
        assert (found and found.__name__) == expected
        assert configuration._used_backend(device) == ("cuda" if expected else "torch")
        del answers[0]


def test_a_cuda_device_without_an_index_is_the_one_that_is_current_at_each_call(monkeypatch):
    pytest.importorskip("triton")
    pretend_gpu(monkeypatch, (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((7, 5), (8, 0))[device.index])
    for current, expected in ((0, "torch"), (1, "triton"), (0, "torch")):
        monkeypatch.setattr(torch.cuda, "current_device", lambda current=current: current)
        device = torch.device("cuda")
        assert backend_for(device) == expected
        assert (optional_implementation("softmax", device) is not None) == (expected == "triton")


@pytest.mark.parametrize("wish", ["triton", "cuda", "native", "torch", "nonsense"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_predicates_never_raise_whatever_backend_is_asked_for(monkeypatch, wish, device):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    tensor = torch.zeros(1, 2, 3, 4, device=device)
    assert is_fused("attention", tensor) == (wish not in ("torch", "cuda"))
    assert attention.can_run(tensor, None) == (wish not in ("torch", "cuda"))


@pytest.mark.parametrize(
    ("wish", "taken"),
    [
        ("", {torch.float32, torch.float64, torch.bfloat16}),
        ("native", {torch.float32, torch.float64, torch.bfloat16}),
        ("triton", {torch.float32, torch.bfloat16, torch.float16}),
        ("cuda", set()),
        ("torch", set()),
    ],
)
def test_attention_on_the_cpu_asks_for_the_dtypes_of_the_backend_wished_for(monkeypatch, wish, taken):
    pytest.importorskip("triton")
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = torch.randn(1, 2, 3, 4).to(dtype)
        assert attention.can_run(x, None) == (dtype in taken)
        if dtype in taken and wish == "triton":
            with pytest.raises(BackendError, match="triton cannot be used on cpu"):
                he.ops.attention(x, x, x)
        else:
            assert he.ops.attention(x, x, x).isfinite().all()


@pytest.mark.parametrize("wish", ["triton", "cuda"])
def test_a_job_on_the_cpu_with_a_gpu_backend_is_refused_with_the_way_out(monkeypatch, wish):
    monkeypatch.setenv("HVP_ENGINE_BACKEND", wish)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2))
    data = [(torch.randn(5, 3), torch.randint(0, 2, (5,)))]
    with pytest.raises(BackendError, match="CUDA devices only.*Available there: native, torch. Unset"):
        he.slq(model, he.losses.classification, data=data, steps=3, probes=1, progress=False)


FAMILIES = sorted(families_of("native") | families_of("cuda") | families_of("triton"))


def test_the_families_of_a_backend_are_the_modules_that_a_facade_calls():
    assert families_of("cuda") == {"lanczos_step", "reorthogonalize", "tridiagonal"}
    assert families_of("triton") == set(FAMILIES) - {"tridiagonal"}
    assert families_of("torch") == families_of("nonsense") == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_served_by_the_first_backend_that_has_it(monkeypatch, family):
    backends = tuple(Backend(name, lambda device: None) for name in ("triton", "cuda", "native", "torch"))
    monkeypatch.setattr(registry, "_BACKENDS", backends)
    expected = "cuda" if family == "tridiagonal" else "triton"
    assert implementation(family, CPU).__name__ == f"hvp_engine.kernels.{expected}.{family}"


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_cpu_the_extension_has_every_family_but_the_step_that_pytorch_records(family):
    kernels = optional_implementation(family, CPU)
    if family == "lanczos_step":
        assert kernels is None
    else:
        assert kernels.__name__ == f"hvp_engine.kernels.native.{family}"


def test_a_backend_that_was_asked_for_is_not_replaced_where_it_lacks_a_family(monkeypatch):
    backends = (Backend("cuda", lambda device: None), Backend("native", lambda device: None))
    monkeypatch.setattr(registry, "_BACKENDS", backends)
    x = torch.zeros(2, 3)
    assert implementation("softmax", CPU).__name__ == "hvp_engine.kernels.native.softmax"
    assert is_fused("softmax", x)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "cuda")
    assert optional_implementation("softmax", CPU) is None
    assert not is_fused("softmax", x)
    with pytest.raises(BackendError, match="HVP_ENGINE_BACKEND=cuda has no softmax kernels for cpu"):
        implementation("softmax", CPU)


def test_a_backend_is_asked_once_whether_it_can_run_until_choices_are_forgotten(monkeypatch):
    asked = []
    answers = [Refusal("it is busy", lasts=False)]

    def why_not(device):
        asked.append(device)
        return answers[0]

    monkeypatch.setattr(registry, "_BACKENDS", (Backend("native", why_not),))
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "native")
    for _ in range(2):  # a refusal that may pass is not kept
        with pytest.raises(BackendError, match="it is busy"):
            backend_for(CPU)
    answers[0], before = None, len(asked)
    for _ in range(3):
        assert backend_for(CPU) == "native"
        assert implementation("softmax", CPU) is implementation("softmax", CPU)
    assert len(asked) == before + 1
    answers[0] = Refusal("it is busy again")
    assert backend_for(CPU) == "native"
    forget_choices()
    with pytest.raises(BackendError, match="it is busy again"):
        implementation("softmax", CPU)
