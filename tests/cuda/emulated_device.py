"""One CUDA device on the CPU, in a process of its own (device_process.py): tensors that PyTorch takes for CUDA tensors.

Their memory is the host's, but they are where CUDA tensors are: an operation refuses host tensors beside them, numpy()
refuses them, autograd runs their backward passes on the device's thread, new memory is full of NaN, and where the host
would wait for the device `torch.cuda.set_sync_debug_mode("error")` raises. Kernels, CUDA's and Triton's, get their real
addresses; no other address passes for one of the device (`refuse_host_addresses`).
"""

from __future__ import annotations

import functools
import inspect
import itertools
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NAME = "NVIDIA A100-SXM4-80GB, emulated"
STREAM = 0x5EE8  # handle of the current stream
_FREE = 1 << 30
_FIRST_ADDRESS = 1 << 32  # no count, size or stride is as large

_aten = torch.ops.aten
_EMPTY = {_aten.empty.memory_format, _aten.empty_strided.default, _aten.empty_like.default}
_EMPTY |= {_aten.new_empty.default, _aten.new_empty_strided.default}
# On a GPU the host waits for what these give it; for masks among the indices of the last two as well.
_WAITING = {_aten._local_scalar_dense.default, _aten.equal.default, _aten.nonzero.default, _aten.masked_select.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default}
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
# Change how a tensor sees its memory.
_RESHAPING = {_aten.squeeze_.dim, _aten.squeeze_.default, _aten.unsqueeze_.default, _aten.transpose_.default}
# Take host tensors beside those of the device: the copies, and indices on the host (the host waits for their copy).
_BETWEEN_DEVICES = _COPIES | _INDEXING

_live: weakref.WeakValueDictionary[int, DeviceTensor] = weakref.WeakValueDictionary()
_serial = itertools.count()
_sync_mode = "default"


class DeviceTensor(torch.Tensor):
    """A tensor whose memory is that of the host tensor `host`, and whose device is CUDA to everyone else."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> DeviceTensor:
        made = torch.Tensor._make_subclass(cls, host, dispatch_device=True, device_for_backend_keys=CUDA)
        made.host = host
        _live[next(_serial)] = made
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, *args, **(kwargs or {}))

    def numpy(self, *, force: bool = False) -> np.ndarray:
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceTensor:
        copied = DeviceTensor(self.host.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied._is_param = True
        return memo.setdefault(id(self), copied)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"DeviceTensor({self.host})"


def _run(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Runs an operation on the host tensors behind its arguments; the results are where CUDA would put them."""
    if operation is torch.ops.prim.device.default:
        return CUDA
    on_device: dict[int, DeviceTensor] = {}
    on_host: list[torch.Tensor] = []

    def behind(value: Any) -> Any:
        if isinstance(value, DeviceTensor):
            on_device[id(value.host)] = value
            return value.host
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            on_host.append(value)
        return CPU if isinstance(value, torch.device) else value

    host_args, host_kwargs = tree_map(behind, args), tree_map(behind, kwargs)
    wanted = kwargs.get("device")
    to_device = bool(on_device) if wanted is None else wanted.type == "cuda"
    _only(wanted)
    if on_device and on_host and operation not in _BETWEEN_DEVICES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({operation})")
    if _sync_mode == "error":
        _refuse_wait(operation, args, kwargs, to_device)
    results = operation(*host_args, **host_kwargs)
    if operation in _EMPTY:
        results.untyped_storage().fill_(0xFF)
    if operation is _aten.copy_.default:
        return args[0]

    if operation in _RESHAPING:
        with torch._C._DisableTorchDispatch():
            operation(*args)  # of the device's tensor itself
    if any(t.shape != t.host.shape for t in on_device.values()):
        raise RuntimeError(
            f"{operation} would change the shape of a tensor on the emulated device, whose shapes are fixed"
        )

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not to_device:
            return value
        return on_device[id(value)] if id(value) in on_device else DeviceTensor(value)

    return tree_map(placed, results)


def _refuse_wait(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any], to_device: bool) -> None:
    crosses = False
    if operation is _aten.copy_.default:
        crosses = isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor)
        crosses &= not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    elif operation is _aten._to_copy.default:
        crosses = isinstance(args[0], DeviceTensor) != to_device and not kwargs.get("non_blocking", False)
    elif operation in _INDEXING:
        chosen = [t for t in args[1] if t is not None]
        crosses = any(t.dtype == torch.bool or not isinstance(t, DeviceTensor) for t in chosen)
    if crosses or operation in _WAITING:
        raise RuntimeError(f"called a synchronizing CUDA operation: {operation}")


def live_tensors() -> list[DeviceTensor]:
    """Tensors that reach the device's memory now: one of each allocation, whole."""
    storages = {t.host.untyped_storage().data_ptr(): t.host.untyped_storage() for t in list(_live.values())}
    whole = (torch.empty(0, dtype=torch.uint8).set_(s) for s in storages.values() if s.nbytes())
    return [torch.Tensor._make_subclass(torch.Tensor, w) for w in whole]


def refuse_host_addresses(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of the extension, for which every address must be one of the device's memory."""

    def checked(*args: Any) -> Any:
        numbers = [x for a in args if isinstance(a, (int, list, tuple, np.ndarray)) for x in np.ravel(a).tolist()]
        spans = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in live_tensors()]
        for number in numbers:
            if number >= _FIRST_ADDRESS and not any(low <= number < high for low, high in spans):
                raise AssertionError(f"{number:#x} is not an address of the device")
        return function(*args)

    return checked


class _Event:
    """A CUDA event of the one stream; refuses what a real one refuses."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._timed, self._at = enable_timing, None

    def record(self, stream: object = None) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end_event: _Event) -> float:
        if not self._timed or not end_event._timed or self._at is None or end_event._at is None:
            raise ValueError("Both events must be created with argument 'enable_timing=True' and be recorded.")
        return 1e3 * (end_event._at - self._at)


def _set_sync_mode(debug_mode: int | str) -> None:
    global _sync_mode  # noqa: PLW0603
    assert debug_mode in ("default", "warn", "error")
    _sync_mode = debug_mode


def _only(device: Any) -> None:
    index = torch.device(device).index if isinstance(device, (str, torch.device)) else device
    if index not in (None, 0, -1):
        raise RuntimeError(f"CUDA error: invalid device ordinal ({device})")


# What the package and its benchmarks ask of torch.cuda, by name; called with the real functions' arguments only.
_STAND_INS: dict[str, Callable[..., Any]] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": _only,
    "synchronize": lambda device=None: _only(device),
    "current_stream": lambda device=None: (_only(device), SimpleNamespace(cuda_stream=STREAM))[1],
    "get_device_name": lambda device=None: (_only(device), NAME)[1],
    "get_device_capability": lambda device=None: (_only(device), (8, 0))[1],
    "get_device_properties": lambda device=None: SimpleNamespace(
        name=NAME, total_memory=80 << 30, major=8, minor=0, multi_processor_count=108
    ),
    "is_bf16_supported": lambda including_emulation=True: True,
    "mem_get_info": lambda device=None: (_FREE, 80 << 30),
    "memory_allocated": lambda device=None: sum(t.nbytes for t in live_tensors()),
    "max_memory_allocated": lambda device=None: sum(t.nbytes for t in live_tensors()),
    "memory_reserved": lambda device=None: sum(t.nbytes for t in live_tensors()),
    "reset_peak_memory_stats": lambda device=None: _only(device),
    "set_sync_debug_mode": _set_sync_mode,
    "_exchange_device": lambda device: (_only(device), 0)[1],
    "_maybe_exchange_device": lambda device: (_only(device), 0)[1],
    "_lazy_init": lambda: None,
}


def _stand_in(real: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(real)

    def call(*args: Any, **kwargs: Any) -> Any:
        signature.bind(*args, **kwargs)
        return instead(*args, **kwargs)

    return call


_library = torch.library.Library("_", "IMPL")
_aten_library = torch.library.Library("aten", "IMPL")


def install(extension: ModuleType) -> None:
    """Makes the device and the CUDA kernels of an extension built for it known to this process, for good."""
    from hvp_engine.kernels import loader
    from hvp_engine.ops import applies

    _library.fallback(_run, "CUDA")  # of all operations: a CPU build has no CUDA kernels
    # What a CPU build composes of others, in a way that these tensors cannot follow: torch.tensor copies its list past
    # all Python keys, ranges and unit matrices resize an empty tensor.
    for name in ("copy_.", "arange.", "arange.start", "arange.start_step", "eye.", "eye.m"):
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(_aten, packet), overload or "default")
        _aten_library.impl(name.rstrip("."), functools.partial(_run, operation), "CUDA")
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for name, instead in _STAND_INS.items():
        setattr(torch.cuda, name, _stand_in(getattr(torch.cuda, name), instead))
    torch.cuda.Event = _Event
    torch.version.cuda = "emulated"
    # Fused operations serve tensors of no other class, since they may hide what they do; these hide nothing.
    applies._PLAIN_TYPES = (*applies._PLAIN_TYPES, DeviceTensor)
    for name in dir(extension):
        if not name.startswith("__"):
            value = getattr(extension, name)
            is_call = name.startswith("cuda_") and callable(value) and name != "cuda_why_not"
            setattr(loader.native, name, refuse_host_addresses(value) if is_call else value)
    loader.native.cuda_built = True


@contextmanager
def interpreted_triton() -> Iterator[list[None]]:
    """Interprets all Triton launches inside; they may reach all memory of the device and nothing else.

    Yields a list that grows by one entry per launch.
    """
    from interpreter import Guard, interpreted

    launches: list[None] = []

    class DeviceGuard(Guard):
        def start_launch(self, arguments: list[Any]) -> None:
            launches.append(None)
            super().start_launch(live_tensors())

    with interpreted(DeviceGuard()):
        yield launches
