"""A team of several processes, on a process group of ``torch.distributed`` and a DeviceMesh of probes x data."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from hvp_engine.errors import HvpEngineError, ProcessError
from hvp_engine.processes import sums
from hvp_engine.processes.failures import Notice
from hvp_engine.processes.team import Axes, Team
from hvp_engine.system.failures import is_out_of_memory
from hvp_engine.system.formatting import raised

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)  # that a process waits for a message: so much later none ends its part of a step
_GLOO = "gloo"


class Several(Team):
    """Several processes, each of which runs the same calls in the same order.

    Small messages go by gloo, whatever the device; products by the device's own backend, where there is one.
    """

    def __init__(self, device: torch.device, asked: Axes | None, notice: Notice) -> None:
        """Take the processes of the default group; all of them call this at once.

        Args:
            device: Where the products are.
            asked: The arrangement that was asked for; None leaves the choice.
            notice: Where processes say why they end.
        """
        self.rank, self.size, self.asked = dist.get_rank(), dist.get_world_size(), asked
        self.notice = notice
        backends = dict(pair.split(":") for pair in dist.get_backend_config().split(","))
        self._talks_on_cpu = backends.get("cpu") == _GLOO
        native = backends.get(device.type, _GLOO) != _GLOO
        self._messages = device if native else torch.device("cpu")
        self._everybody: Any = dist.group.WORLD if self._talks_on_cpu else dist.new_group(backend=_GLOO)
        self._of_products: Any = self._everybody
        self._of_numbers: Any = self._everybody
        self._made: dict[Axes, tuple[Any, Any]] = {}

    def arrange(self, axes: Axes) -> None:
        """Arrange the processes; all of them call this at once."""
        super().arrange(axes)
        if axes not in self._made:
            self._made[axes] = self._talk(lambda: self._groups(axes))
        self._of_products, self._of_numbers = self._made[axes]

    def meet(self) -> None:
        """Wait until all processes have come here, however long that takes some of them."""
        self.notice.meet()

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first process makes; where it fails, all raise its error."""
        made: list[Any] = [None, None]
        failure: Exception | None = None
        if self.first:
            try:
                made[0] = make()
            except Exception as error:
                failure = error
                words = f"Rank 0 of {self.size} failed: it raised {raised(error)}."
                made[1] = error if isinstance(error, HvpEngineError) else ProcessError(words, 0)
        self._talk(lambda: dist.broadcast_object_list(made, src=0, group=self._everybody, device=torch.device("cpu")))
        if failure is not None:
            raise failure
        if made[1] is not None:
            raise made[1]
        found: T = made[0]
        return found

    def gathered(self, value: T) -> list[T]:
        """Return everybody's values, by rank."""
        values: list[Any] = [None] * self.size
        self._talk(lambda: dist.all_gather_object(values, value, group=self._everybody))
        return values

    def add_up(self, tensors: Mapping[str, Tensor], numbers: Sequence[float]) -> list[float]:
        """Add tensors up over the processes of this group, in place, and numbers, in the order of ranks."""
        if self.axes.data == 1:
            return list(numbers)
        return self._talk(lambda: self._add_up(tensors, numbers))

    def _add_up(self, tensors: Mapping[str, Tensor], numbers: Sequence[float]) -> list[float]:
        what = zlib.crc32(repr([(name, tuple(tensor.shape)) for name, tensor in tensors.items()]).encode())
        mine = torch.tensor([float(what), *numbers], dtype=torch.float64, device="cpu")
        rows = [torch.empty_like(mine) for _ in range(self.axes.data)]
        dist.all_gather(rows, mine, group=self._of_numbers)
        if any(row[0] != what for row in rows):
            raise ProcessError(
                "Processes that share the data do not multiply the same vectors any more: they decided otherwise where "
                "rounding decides, as unequal processors may. Let them share the streams instead, by distributed="
                f"{{'probes': {self.size}, 'data': 1}}, or take machines of one kind.",
                None,
            )
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors.values():
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for of_dtype in by_dtype.values():
            sums.add_up(of_dtype, self._of_products, self._messages)
        return [sum(values) for values in zip(*(row[1:].tolist() for row in rows), strict=True)]

    def _groups(self, axes: Axes) -> tuple[Any, Any]:
        """Make the groups of this process for products and for numbers."""
        mesh = init_device_mesh(self._messages.type, tuple(axes), mesh_dim_names=axes._fields)
        products = mesh.get_group("data")
        if self._talks_on_cpu:
            return products, products
        rows = [range(group * axes.data, (group + 1) * axes.data) for group in range(axes.probes)]
        return products, [dist.new_group(list(row), backend=_GLOO) for row in rows][self.group]

    def _talk(self, call: Callable[[], T]) -> T:
        """Send and receive; where that fails, say whose fault it is.

        Raises:
            ProcessError: Another process has ended, or cannot be reached.
        """
        try:
            return call()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise self.notice.cause(error) from error
