"""Triton kernels that cannot be compiled or launched are named as this package's, with the way to go without them."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import triton
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITFunction

from hvp_engine.errors import BackendError
from hvp_engine.kernels.records import AttentionInputs
from hvp_engine.kernels.streams import TWICE, LanczosState, Projection, Step
from hvp_engine.kernels.triton import attention, lanczos_step, reorthogonalize, softmax

FAILURES = {
    "CompilationError": CompilationError("def kernel():\n    return None", None, "cannot convert None to tensor"),
    "OutOfResources": OutOfResources(101376, 99 * 1024, "shared memory"),
    "Failed to find C compiler": RuntimeError("Failed to find C compiler. Please specify via CC"),
    "invalid argument": RuntimeError("invalid argument"),
    "non-zero exit status": subprocess.CalledProcessError(1, ["gcc", "main.c"]),
    "Permission denied": PermissionError(13, "Permission denied"),
}


def rows() -> None:
    softmax.softmax_forward(torch.zeros(2, 3), torch.zeros(2, 3))


def heads() -> None:
    query, statistics = torch.zeros(1, 1, 4, 16), torch.zeros(1, 1, 4, 2)
    x = AttentionInputs(query, query, query, None, statistics, 1.0, True)
    attention.attention_forward(x, torch.zeros_like(query))


def projection() -> None:
    basis, vector = torch.zeros(2, 5), torch.zeros(5)
    table = np.array([[basis.data_ptr(), vector.data_ptr(), 5, 5, 1, 0, 0]], dtype=np.int64)
    found = Projection(*(torch.zeros(shape, dtype=torch.float64) for shape in ((1, 1), (1,), (1,))))
    reorthogonalize.reorthogonalize(table, TWICE, found)


def step() -> None:
    double = torch.zeros(1, dtype=torch.float64)
    table, whole = double[:, None].clone(), torch.zeros(1, dtype=torch.int64)
    state = LanczosState(table, table.clone(), whole, torch.ones(1, dtype=torch.bool), double, double, whole)
    lanczos_step.record_step(state, Step([0], 0, double, double, double, 0.0), [])


LAUNCHES = {
    "softmax_forward_kernel": rows,
    "attention_forward": heads,
    "project_tiles": projection,
    "decide_step": step,
}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets every launch raise what it is told."""

    def fail(error: Exception) -> None:
        def run(self: JITFunction, *args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(JITFunction, "run", run)
        monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())

    return fail


@pytest.mark.parametrize("launched", LAUNCHES)
@pytest.mark.parametrize("failure", FAILURES)
def test_a_kernel_that_fails_is_named_as_ours(failing: Any, launched: str, failure: str) -> None:
    failing(FAILURES[failure])
    with pytest.raises(BackendError, match="HVP_ENGINE_BACKEND=torch") as raised:
        LAUNCHES[launched]()
    assert f"A Triton kernel of this package, {launched}," in str(raised.value)
    assert failure in str(raised.value)
    assert raised.value.__cause__ is FAILURES[failure]


def test_the_compilers_reason_is_told_without_its_lines_of_source(failing: Any) -> None:
    failing(FAILURES["CompilationError"])
    with pytest.raises(BackendError, match=r"\(CompilationError: cannot convert None to tensor\)"):
        rows()


@pytest.mark.parametrize(
    "text", ["Triton Error [CUDA]: out of memory", "Triton Error [CUDA]: an illegal memory access was encountered"]
)
def test_a_lack_of_memory_and_an_earlier_failure_of_the_device_are_none_of_the_kernels(failing: Any, text: str) -> None:
    error = RuntimeError(text)
    failing(error)
    with pytest.raises(RuntimeError) as raised:
        rows()
    assert raised.value is error


def test_a_kernel_that_compiles_nowhere_fails_in_these_words() -> None:
    """The exceptions above are those that Triton raises."""

    @triton.jit
    def broken(x):
        return undefined_name + x  # noqa: F821

    source = triton.compiler.ASTSource(broken, {"x": "i32"})
    with pytest.raises(CompilationError) as raised:
        triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", 90, 32))
    assert "undefined_name" in str(raised.value.error_message)
