"""Follow Triton launches without a GPU: what they would compile is written down, and can be compiled, anywhere.

Inside `recorded` every launch is specialised as on a card of that architecture, by Triton's own code and from the
launch's own arguments, and then put into a list instead of being compiled and run. `compile_launch` gives an entry of
that list to Triton's compiler as the launch would have done, with the same key in its cache.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
import triton.compiler
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

_OWN_FILES = "extern_libs"  # option with a path into this Triton's folder; every Triton fills in its own


class Kernel(NamedTuple):
    """A `triton.jit` function by the name under which another process finds it."""

    module: str
    name: str

    @classmethod
    def of(cls, function: JITFunction) -> Kernel:
        """Name a function, which must be an attribute of its module."""
        return cls(function.fn.__module__, function.fn.__name__)

    def find(self) -> JITFunction:
        """Return the function."""
        return getattr(importlib.import_module(self.module), self.name)


@dataclass(frozen=True)
class Launch:
    """One variant of a kernel: what Triton compiles for a launch.

    Attributes:
        kernel: The function.
        signature: Types of its arguments, by name.
        constants: Values of those that are constants, by path; functions as `Kernel`.
        attributes: What the compiler may assume of arguments, by path.
        options: Warps, stages and the like.
        architecture: For which it was specialised, such as 90.
    """

    kernel: Kernel
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    architecture: int

    @classmethod
    def of(cls, source: ASTSource, target: GPUTarget, options: dict[str, Any]) -> Launch:
        """Describe what Triton's compiler was asked for."""
        constants = {p: Kernel.of(v) if isinstance(v, JITFunction) else v for p, v in source.constants.items()}
        kept = {name: value for name, value in options.items() if name != _OWN_FILES}
        return cls(Kernel.of(source.fn), source.signature, constants, source.attrs, kept, target.arch)

    @property
    def target(self) -> GPUTarget:
        """The card."""
        return GPUTarget("cuda", self.architecture, 32)

    def source(self) -> ASTSource:
        """Return what Triton's compiler takes."""
        constants = {p: v.find() if isinstance(v, Kernel) else v for p, v in self.constants.items()}
        return ASTSource(self.kernel.find(), self.signature, constants, self.attributes)


class Compiled(NamedTuple):
    """What became of a launch in the compiler: the kernel or the reason why there is none, from the cache or not."""

    kernel: CompiledKernel | None
    error: str
    from_cache: bool
    seconds: float


class _Card:
    """What a launch asks Triton's driver before it compiles."""

    def __init__(self, architecture: int) -> None:
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_device(self) -> _Card:
        """Return the key of the kernels' caches in memory: nobody else's."""
        return self

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


@contextmanager
def recorded(architecture: int) -> Iterator[list[Launch]]:
    """Write down what launches inside would compile; none of them runs.

    Args:
        architecture: Compute capability of the card that Triton is to see, such as 90.

    Yields:
        A list that grows by one entry per variant.
    """
    launches: list[Launch] = []
    specialise = JITFunction.run

    def compiler(source: ASTSource, target: GPUTarget, options: dict[str, Any], **_: Any) -> object:
        launches.append(Launch.of(source, target, options))
        return SimpleNamespace()  # the kernel; nobody launches it

    def run(self: JITFunction, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> object:
        return specialise(self, *args, grid=grid, warmup=True, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(driver, "_active", _Card(architecture)))
        stack.enter_context(patch.object(triton.compiler, "compile", compiler))  # a kernel's first launch imports it
        stack.enter_context(patch.object(JITFunction, "run", run))
        yield launches


def compile_launch(launch: Launch) -> Compiled:
    """Compile a variant as its launch would, or find it in the cache that TRITON_CACHE_DIR names."""
    heard: list[bool] = []

    def listen(*, cache_hit: bool, **_: Any) -> None:
        heard.append(cache_hit)

    began, kernel, error = time.perf_counter(), None, ""
    with patch.object(knobs.compilation, "listener", listen):
        try:
            kernel = triton.compile(launch.source(), target=launch.target, options=dict(launch.options))
        except Exception as failure:  # Triton's passes raise errors of many types
            error = f"{launch.kernel.name} does not compile for sm_{launch.architecture}: {failure!r}."
    return Compiled(kernel, error, heard == [True], time.perf_counter() - began)
