"""The processes that work on one job, and what they tell each other; one process is a team, too.

They are arranged on two axes: ``probes`` groups, each of which has streams of its own and needs nothing of the others
while it runs, of ``data`` processes each, which have a part of the data each and add up their products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

T = TypeVar("T")


class Axes(NamedTuple):
    """How processes are arranged.

    Attributes:
        probes: Groups that share the streams.
        data: Processes of each group, which share the data.
    """

    probes: int
    data: int

    @property
    def size(self) -> int:
        """How many processes that takes."""
        return self.probes * self.data


ONE = Axes(1, 1)


class Team:
    """One process, which agrees with itself; what several have in common is in the same words.

    Attributes:
        rank: This process's number, from 0.
        size: How many processes there are.
        axes: How they are arranged; one of each until :meth:`arrange`.
        asked: The arrangement that was asked for; None leaves the choice.
    """

    rank = 0
    size = 1
    axes = ONE
    asked: Axes | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    @property
    def group(self) -> int:
        """Which group of streams is this process's."""
        return self.rank // self.axes.data

    @property
    def member(self) -> int:
        """Which part of the data is this process's."""
        return self.rank % self.axes.data

    @property
    def leads(self) -> bool:
        """Whether this process writes down what its group finds."""
        return self.member == 0

    def arrange(self, axes: Axes) -> None:
        """Arrange the processes; all of them call this at once.

        Args:
            axes: As many of each kind as there are processes.
        """
        self.axes = axes

    def meet(self) -> None:
        """Wait until all processes have come here, however long that takes some of them.

        Raises:
            ProcessError: One of them has ended.
        """

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first process makes; where it fails, all raise its error."""
        return make()

    def gathered(self, value: T) -> list[T]:
        """Return everybody's values, by rank."""
        return [value]

    def least(self, value: int) -> int:
        """Return the smallest of everybody's values."""
        return min(self.gathered(value))

    def of_group(self, values: Sequence[T], group: int) -> list[T]:
        """Return the values of the processes of one group."""
        return list(values[group * self.axes.data : (group + 1) * self.axes.data])

    def add_up(self, tensors: Mapping[str, Tensor], numbers: Sequence[float]) -> list[float]:
        """Add tensors up over the processes of this group, in place, and numbers.

        Terms are added in the order of ranks, so that a sum has the same bits every time and in every process.

        Args:
            tensors: By name, contiguous; all processes have the same names and shapes.
            numbers: As many for all.

        Returns:
            The sums of the numbers.
        """
        return list(numbers)

    def record(self) -> dict[str, Any] | None:
        """Say for manifests how the processes are arranged; None for one."""
        return None if self.size == 1 else self.axes._asdict()


ALONE = Team()
