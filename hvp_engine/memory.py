"""How much memory a device has to spare, and how much a piece of autograd graph holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_SHARE = 0.8  # of what is free now: the rest is left to temporaries of libraries and to other programs
_FALLBACK = 4 << 30


def budget(device: torch.device) -> int:
    """Bytes that the engine may use on a device: 80 % of what is free now.

    On a CPU that is the kernel's estimate of available memory, bounded by the control group's limit; on CUDA the free
    device memory plus what torch's allocator holds unused.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free_share(free + unused)
    return free_share(min(_available(), _group_headroom()))


def free_share(free: int) -> int:
    """Bytes of a device's free memory that the engine may use."""
    return int(_SHARE * free)


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _FALLBACK


def _group_headroom() -> int:
    """Memory left in this process's control group (version 2, then 1); huge where there is no limit."""
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
    """Bytes of a control group's use that are cached files, which the kernel drops when memory is asked for."""
    try:
        entries = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(entries.get(key, 0)) for key in ("active_file", "inactive_file"))


class GraphSize:
    """Bytes that autograd graphs built inside :func:`graph_size` keep alive, parameters not counted."""

    def __init__(self, parameters: list[Tensor]) -> None:
        # By object, not by address: tensors on the meta device have none.
        self._own = {parameter.untyped_storage()._cdata for parameter in parameters}
        self._storages: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        """Sum over distinct storages."""
        return sum(self._storages.values())

    def see(self, tensor: Tensor) -> None:
        """Count the storage of a saved tensor once."""
        if tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._storages[storage._cdata] = storage.nbytes()


@contextlib.contextmanager
def graph_size(parameters: list[Tensor]) -> Iterator[GraphSize]:
    """Count what autograd saves while the context is open; valid as long as the graph is alive."""
    size = GraphSize(parameters)

    def pack(tensor: Tensor) -> Tensor:
        size.see(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield size
