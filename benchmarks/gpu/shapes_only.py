"""An emulated card that answers large operations by shapes alone, so that a job of any size is followed in seconds.

It is the emulated device of tests/cuda under another name, with two differences. An operation that touches many
floating-point numbers is not computed: its result has the shape, dtype and strides that it should have, and all results
share one memory. And new memory, which the engine's kernels would fill, holds numbers as harmless as those. What a
program decides by values it decides by these; what it launches, and with which sizes, is what it would on a card.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import math
import mmap
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_TESTS = ROOT / "tests"
_BYTE = 0x3F  # repeated, a number between 1e-4 and 2 in every floating-point format
_SMALL = 1 << 18  # elements up to which operations are computed
_CHUNK, _CHUNKS = 1 << 28, 640  # bytes that are there, and how often they are mapped one after another: 160 GiB


class Card(NamedTuple):
    """What a program may ask about a card."""

    name: str
    capability: tuple[int, int]
    processors: int
    memory: int
    shared_per_block: int


CARDS = {
    80: Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 80 << 30, 163 << 10),
    90: Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 80 << 30, 227 << 10),
}


def install(card: Card, folder: Path) -> None:
    """Make the card known to this process, for good; PyTorch must not be loaded yet.

    Args:
        card: Which one.
        folder: Keeps the library that is compiled for it, some C++ over PyTorch's headers.
    """
    if "torch" in sys.modules:
        raise RuntimeError("PyTorch was loaded before its device.")
    ctypes.CDLL(str(_library(folder)), mode=ctypes.RTLD_GLOBAL)
    sys.path[:0] = [str(_TESTS / "cuda"), str(_TESTS / "triton")]
    emulated = importlib.import_module("emulated_device")
    from hvp_engine.kernels import loader

    _describe(emulated, card)
    emulated._run = Shapes(emulated).run
    if loader.native is None:  # a checkout: what the host computes takes the references
        loader.native = ModuleType("no extension")
    loader.cuda_missing_reason = lambda: None
    emulated.install(_idle_kernels())
    import torch

    torch.cuda.Stream, torch.cuda.stream = _Stream, lambda stream: nullcontext()
    _take_steps()


class _Stream:
    """A further stream: the device has done everything as soon as it is queued."""

    cuda_stream = 0x5EE9

    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.device = device

    def synchronize(self) -> None:
        pass

    def wait_stream(self, stream: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass


def _take_steps() -> None:
    """Let recorded Lanczos steps be counted, as the kernels would have done: jobs end by their counts."""
    from hvp_engine.kernels.cuda import lanczos_step as of_cuda
    from hvp_engine.kernels.lanczos_step import record_step_ref
    from hvp_engine.kernels.triton import lanczos_step as of_triton

    for module in (of_cuda, of_triton):

        def record_step(state: Any, step: Any, vectors: Any, launch: Any = module.record_step) -> None:
            launch(state, step, vectors)
            record_step_ref(state, step, vectors)

        module.record_step = record_step


def _library(folder: Path) -> Path:
    """Return the library that lets a CPU build of PyTorch believe in a device.

    It is compiled once per source, PyTorch and the place where that is installed.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise RuntimeError("PyTorch is not installed.")
    torch = Path(found.origin).parent
    source = _TESTS / "cuda" / "emulation" / "device.cpp"
    version = (torch / "version.py").read_bytes()
    if not re.search(rb"^cuda.* = None$", version, re.MULTILINE):
        raise RuntimeError(f"This needs a CPU build of PyTorch; the one in {torch} has kernels of its own for a card.")
    flags = ("-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden", "-shared", f"-I{torch / 'include'}")
    libraries = (f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}")
    known = source.read_bytes() + version + repr((flags, libraries)).encode()  # it loads PyTorch from this very folder
    target = folder / f"device-{hashlib.sha256(known).hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        made = target.with_suffix(f".{os.getpid()}")
        subprocess.run(["g++", *flags, str(source), "-o", str(made), *libraries], check=True)
        made.rename(target)
    return target


def _describe(emulated: ModuleType, card: Card) -> None:
    """Let the emulated device be this card."""

    def free(device: object = None) -> tuple[int, int]:
        return card.memory - sum(tensor.nbytes for tensor in emulated.live_tensors()), card.memory

    major, minor = card.capability
    properties = SimpleNamespace(
        name=card.name,
        total_memory=card.memory,
        major=major,
        minor=minor,
        multi_processor_count=card.processors,
        shared_memory_per_block_optin=card.shared_per_block,
        shared_memory_per_multiprocessor=card.shared_per_block + 1024,
        L2_cache_size=50 << 20,
        warp_size=32,
    )
    emulated._STAND_INS.update(
        get_device_name=lambda device=None: card.name,
        get_device_capability=lambda device=None: card.capability,
        get_device_properties=lambda device=None: properties,
        mem_get_info=free,
    )


def _idle_kernels() -> ModuleType:
    """Return the functions of the extension's CUDA part, none of which computes anything."""
    import numpy as np

    def plan(table: object) -> tuple[object, object]:
        return SimpleNamespace(workspace_bytes=1), np.zeros(1, dtype=np.int64)

    def quadrature(matrices: int, most: int, arrays: list[int], *on: int) -> None:
        ctypes.c_int64.from_address(arrays[5]).value = -1  # no matrix failed

    idle = ModuleType("idle_kernels")
    idle.cuda_max_rows = 1 << 20
    idle.cuda_why_not = lambda: None
    idle.cuda_plan_record = idle.cuda_plan_reorthogonalize = plan
    idle.cuda_record_step = idle.cuda_reorthogonalize = lambda *arguments: None
    idle.cuda_tridiagonal_workspace_bytes = lambda matrices, most: 1
    idle.cuda_tridiagonal_quadrature = quadrature
    return idle


class _Memory:
    """Addresses for results of any size, behind which is little memory, full of numbers."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        file = os.memfd_create("numbers")
        os.ftruncate(file, _CHUNK)
        with mmap.mmap(file, _CHUNK) as chunk:
            chunk[:] = bytes([_BYTE]) * _CHUNK
        rights, reserved, fixed = mmap.PROT_READ | mmap.PROT_WRITE, 0x4000, 0x10  # Linux: MAP_NORESERVE, MAP_FIXED
        private = mmap.MAP_PRIVATE | reserved  # what is written does not reach the file
        self._base = libc.mmap(None, _CHUNK * _CHUNKS, rights, private | mmap.MAP_ANONYMOUS, -1, 0)
        for i in range(_CHUNKS):
            libc.mmap(self._base + i * _CHUNK, _CHUNK, rights, private | fixed, file, 0)
        os.close(file)
        self._given = 0

    def like(self, meta: Any) -> Any:
        """Return a host tensor with the shape, dtype and strides of one without memory."""
        import torch

        # Tensors begin at addresses of their own: by those programs tell tied weights.
        self._given = (self._given + 4096) % _CHUNK
        count = 1 + sum((size - 1) * stride for size, stride in zip(meta.shape, meta.stride(), strict=True))
        there = (ctypes.c_char * (count * meta.element_size())).from_address(self._base + self._given)
        return torch.frombuffer(there, dtype=meta.dtype).as_strided(meta.shape, meta.stride())

    def holds(self, tensor: Any) -> bool:
        """Say whether a tensor is one of those, or a part of one."""
        return 0 <= tensor.data_ptr() - self._base < _CHUNK * _CHUNKS


class Shapes:
    """Runs operations of the emulated device, the large ones by shapes alone."""

    def __init__(self, emulated: ModuleType) -> None:
        import torch

        self._torch, self._emulated, self._compute = torch, emulated, emulated._run
        self._memory = _Memory()
        aten = torch.ops.aten
        self._real = {aten._local_scalar_dense.default, aten.equal.default, torch.ops.prim.device.default}
        self._real |= emulated._RESHAPING

    def run(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        """Run an operation; what `_run` of the emulated device is replaced by."""
        from torch.utils._pytree import tree_leaves

        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, self._torch.Tensor)]
        returns = operation._schema.returns
        aliases = [r.alias_info for r in returns if r.alias_info is not None]
        if operation in self._real or any(not alias.is_write for alias in aliases):
            return self._compute(operation, *args, **kwargs)
        if operation._schema.is_mutable:
            return self._in_place(operation, tensors, aliases, args, kwargs)
        if self._is_large(args, tensors):
            found = self._by_shapes(operation, args, kwargs)
            if found is not None:
                return found
        results = self._compute(operation, *args, **kwargs)
        if operation in self._emulated._EMPTY and isinstance(results, self._emulated.DeviceTensor):
            results.host.untyped_storage().fill_(_BYTE if results.dtype.is_floating_point else 0)
        return results

    def _is_large(self, args: tuple[Any, ...], tensors: list[Any]) -> bool:
        if any(t.numel() > _SMALL and t.dtype.is_floating_point for t in tensors):
            return True
        sizes = next((a for a in args if isinstance(a, (list, tuple)) and a and all(type(n) is int for n in a)), ())
        return len(sizes) > 0 and math.prod(sizes) > _SMALL  # of a new tensor

    def _in_place(self, operation: Any, tensors: list[Any], aliases: list[Any], args: Any, kwargs: Any) -> Any:
        """Change nothing where much would be."""
        target = kwargs["out"] if "out" in kwargs else args[0]
        if isinstance(target, self._emulated.DeviceTensor) and target.dtype != self._torch.bool and aliases:
            large = [t for t in tensors if t.numel() > _SMALL]
            if self._memory.holds(target) or any(t.dtype.is_floating_point or self._memory.holds(t) for t in large):
                return target
        return self._compute(operation, *args, **kwargs)

    def _by_shapes(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Return results of the shapes that they should have; None where only computing says what they are."""
        torch = self._torch
        from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

        wanted = kwargs.get("device")

        def without_memory(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
            if isinstance(value, torch.Generator):
                return None
            return torch.device("meta") if isinstance(value, torch.device) else value

        try:
            shaped = operation(*tree_map(without_memory, args), **tree_map(without_memory, kwargs))
        except (NotImplementedError, RuntimeError):
            return None  # no shapes without numbers; or a mistake, which computing reports
        leaves, structure = tree_flatten(shaped)
        if not all(isinstance(t, torch.Tensor) and t.dtype.is_floating_point for t in leaves if t is not None):
            return None
        made = [None if t is None else self._memory.like(t) for t in leaves]
        if wanted is None or torch.device(wanted).type == "cuda":
            made = [None if t is None else self._emulated.DeviceTensor(t) for t in made]
        return tree_unflatten(made, structure)
