"""What an exception says of the machine: in the words of PyTorch, its libraries, Triton and the driver."""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import mlp

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, DeviceError, HvpEngineError, ObjectiveError, OutOfMemoryError
from hvp_engine.system.failures import failures_in_words, is_device_failure, is_out_of_memory, let_go, pass_on

NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    RuntimeError("unable to mmap 8 bytes from file <f>: Cannot allocate memory (12)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("std::bad_alloc"),
]
OF_DEVICE = [
    torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronous"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("misaligned address"),
    RuntimeError("unspecified launch failure"),
]
OF_MODEL = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    RuntimeError("derivative for aten::_scaled_dot_product_flash_attention_backward is not implemented"),
    ValueError("CUDA error: out of memory"),  # of a model that speaks of it
    KeyError("labels"),
]


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:60]


@pytest.mark.parametrize("error", NO_MEMORY, ids=named)
def test_a_lack_of_memory_is_known_in_every_librarys_words(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_device_failure(error)
    with pytest.raises(type(error)):
        pass_on(error)
    with pytest.raises(OutOfMemoryError, match="Memory ran out while it was tried"), failures_in_words("it was tried"):
        raise error


@pytest.mark.parametrize("error", OF_DEVICE, ids=named)
def test_a_device_that_failed_is_named_as_that_with_the_way_to_find_the_cause(error: Exception) -> None:
    assert is_device_failure(error)
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        pass_on(error)
    with pytest.raises(DeviceError, match="CUDA_LAUNCH_BLOCKING=1") as raised, failures_in_words("it was tried"):
        raise error
    assert raised.value.__cause__ is error
    assert is_device_failure(raised.value)


@pytest.mark.parametrize("error", OF_MODEL, ids=named)
def test_what_a_model_raises_is_neither(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert not is_device_failure(error)
    pass_on(error)  # raises nothing
    with pytest.raises(type(error)) as raised, failures_in_words("it was tried"):
        raise error
    assert raised.value is error


def test_errors_of_this_package_pass_as_they_are() -> None:
    error = ConfigurationError("An out of memory model, CUDA error.")
    assert not is_out_of_memory(error)
    assert not is_device_failure(error)
    with pytest.raises(ConfigurationError) as raised, failures_in_words("it was tried"):
        pass_on(error)
    assert raised.value is error


class Fails(torch.autograd.Function):
    """Raises what it is told in the forward pass, in the first or in the second backward pass."""

    when: str
    error: Exception

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, name: str) -> torch.Tensor:
        ctx.stage = name
        if Fails.when == name:
            raise Fails.error
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        following = {"loss": "gradient", "gradient": "product"}.get(ctx.stage, "beyond")
        return Fails.apply(grad, following), None


def call_of(name: str) -> Callable[..., Any]:
    def with_vectors(model: Any, loss: Any, data: Any) -> Any:
        return he.hvp(model, loss, {"full": torch.ones(1, 111)}, data=data)

    def job(model: Any, loss: Any, data: Any) -> Any:
        return he.slq(model, loss, data=data, steps=2, probes=1, progress=False)

    return {"hvp": with_vectors, "slq": job}[name]


@pytest.mark.parametrize("call", ["hvp", "slq"])
@pytest.mark.parametrize("when", ["loss", "gradient", "product"])
def test_no_call_takes_a_device_that_failed_for_a_fault_of_the_model(call: str, when: str) -> None:
    case = mlp()
    Fails.when, Fails.error = when, OF_DEVICE[0]

    def loss(model: Any, batch: Any) -> Any:
        return case.loss(lambda x: Fails.apply(model(x), "loss"), batch)

    with pytest.raises(HvpEngineError) as raised:
        call_of(call)(case.model, loss, case.data)
    assert type(raised.value) is DeviceError
    assert "device-side assert triggered" in str(raised.value)


def test_the_doctor_reports_a_device_that_failed() -> None:
    case = mlp()
    Fails.when, Fails.error = "product", OF_DEVICE[1]

    def loss(model: Any, batch: Any) -> Any:
        return case.loss(lambda x: Fails.apply(model(x), "loss"), batch)

    report = he.doctor(case.model, loss, data=case.data, seconds=2.0)
    errors = {finding.code: finding for finding in report.findings if finding.severity == "error"}
    assert set(errors) == {"device-fails"}
    assert "illegal memory access" in errors["device-fails"].message
    assert "CUDA_LAUNCH_BLOCKING=1" in errors["device-fails"].fix


def test_what_a_failed_attempt_held_is_let_go_and_its_lines_stay() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def attempt() -> None:
        inner = torch.zeros(3)
        kept.append(weakref.ref(inner))
        try:
            raise ValueError("inside")
        except ValueError as error:
            outer = torch.ones(3)
            kept.append(weakref.ref(outer))
            raise ObjectiveError("It failed.") from error

    failure: BaseException | None = None
    try:
        attempt()
    except ObjectiveError as error:
        failure = error
    assert all(reference() is not None for reference in kept)
    let_go(failure)
    assert all(reference() is None for reference in kept)
    assert "in attempt" in "".join(traceback.format_exception(failure))
