"""How much memory a device has to spare, and how much a piece of autograd graph holds."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hvp_engine.system.torch_private import storage_key

_SHARE = 0.8  # of what is free now: the rest is left to temporaries of libraries and to other programs
_FALLBACK = 4 << 30
_sharing: ContextVar[int] = ContextVar("_sharing", default=1)  # processes that share the host's memory


def budget(device: torch.device) -> int:
    """Return the bytes that the engine may use on a device: 80 % of what is free now.

    On a CPU that is the kernel's estimate of available memory, bounded by the control group's limit; on CUDA the free
    device memory plus what torch's allocator holds unused.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free_share(free + unused)
    return free_share(min(_available(), _group_headroom())) // _sharing.get()


@contextlib.contextmanager
def shared_by(processes: int) -> Iterator[None]:
    """Leave their parts of the host's memory to other processes of a job inside.

    Args:
        processes: How many share it, this one counted.
    """
    before = _sharing.set(processes)
    try:
        yield
    finally:
        _sharing.reset(before)


def free_share(free: int) -> int:
    """Return how many of a device's free bytes the engine may use."""
    return int(_SHARE * free)


def free_disk() -> int:
    """Return the bytes that are free where temporary files go; 0 where none can be written."""
    try:
        return shutil.disk_usage(tempfile.gettempdir()).free
    except OSError:
        return 0


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _FALLBACK


def _group_headroom() -> int:
    """Return the bytes left in this process's control group (version 2, then 1); a huge number without a limit."""
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            headroom = int(Path(limit).read_text()) - int(Path(usage).read_text())
            return max(0, headroom + _file_cache(Path(limit).with_name("memory.stat")))
        except (OSError, ValueError):
            continue
    return 1 << 62


def _file_cache(path: Path) -> int:
    """Return how many bytes of a control group are cached files, which the kernel drops when memory is asked for."""
    try:
        entries = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(entries.get(key, 0)) for key in ("active_file", "inactive_file"))


@dataclass
class Peak:
    """Largest increase of memory inside :func:`peak_memory`; None where the system does not tell."""

    bytes: int | None = None


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure how far memory rises above where it was: of the process on a CPU, of torch's allocator on CUDA."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    start = resident().now if _forget_peak() else None
    yield peak
    highest = resident().highest
    if start is not None and highest is not None:
        peak.bytes = max(0, highest - start)


@dataclass(frozen=True)
class Resident:
    """Resident memory of this process in bytes; None where the system does not tell.

    Attributes:
        now: At this moment.
        highest: The most so far.
    """

    now: int | None
    highest: int | None


def resident() -> Resident:
    """Ask the kernel how much memory of this process is resident."""
    return Resident(_status("VmRSS"), _status("VmHWM"))


def _forget_peak() -> bool:
    """Let the kernel count the process's largest resident size from here on (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class GraphSize:
    """Bytes that autograd graphs built inside :func:`graph_size` keep alive, parameters not counted."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._own = {storage_key(parameter.untyped_storage()) for parameter in parameters}
        self._storages: dict[Hashable, int] = {}

    @property
    def bytes(self) -> int:
        """Sum over distinct storages."""
        return sum(self._storages.values())

    def see(self, tensor: Tensor) -> None:
        """Count the storage of a saved tensor once."""
        if tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        if key not in self._own:
            self._storages[key] = storage.nbytes()


@contextlib.contextmanager
def graph_size(parameters: list[Tensor]) -> Iterator[GraphSize]:
    """Count what autograd saves while the context is open; valid as long as the graph is alive."""
    size = GraphSize(parameters)
    with _seen(size.see):
        yield size


@contextlib.contextmanager
def saved_dtypes() -> Iterator[set[torch.dtype]]:
    """Collect the floating-point dtypes of what autograd saves while the context is open."""
    found: set[torch.dtype] = set()

    def see(tensor: Tensor) -> None:
        if tensor.is_floating_point():
            found.add(tensor.dtype)

    with _seen(see):
        yield found


def _seen(see: Callable[[Tensor], None]) -> torch.autograd.graph.saved_tensors_hooks:
    """Show everything that autograd saves inside the context."""

    def pack(tensor: Tensor) -> Tensor:
        see(tensor)
        # Not the tensor itself: the result of an operation such as tanh, which saves it, would keep its own graph alive
        # for ever, in a circle that no garbage collector sees. Autograd puts the graph back when it unpacks.
        return tensor.detach()

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
