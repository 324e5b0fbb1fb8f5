"""The part of the data that one of several processes multiplies, and the sum of all parts' products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hvp_engine.problem.objective import MicroBatch, Objective
from hvp_engine.scheduling.axes import WHOLE, Span
from hvp_engine.scheduling.groups import Groups, pieces

AddUp = Callable[[Mapping[str, Tensor], Sequence[float]], list[float]]


@dataclass(frozen=True)
class Share:
    """One process's part.

    Attributes:
        spans: Its samples, by number of the batch.
        part: Which share of the data they are.
        add_up: Adds tensors up over the processes, in place, and numbers.
    """

    spans: Mapping[int, tuple[Span, ...]]
    part: float
    add_up: AddUp

    def total(self, out: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> list[float]:
        """Add products up over the processes, in place, and the weights of their samples.

        Args:
            out: Products by block, of each part of divided data.
            weights: Of each part.
        """
        named = {f"{part}/{name}": tensor for part, products in enumerate(out) for name, tensor in products.items()}
        return self.add_up(named, weights)


def microbatches(
    objective: Objective, most: int | None, groups: Groups | None, share: Share | None
) -> Iterator[MicroBatch]:
    """Cut the data, or a process's part of it, into micro-batches: the same pieces in the same order every time.

    Args:
        objective: Has the data.
        most: Samples of a piece; None leaves batches whole.
        groups: Parts of the data that no piece crosses; None where there are none.
        share: The process's part; None for all of the data.
    """
    for number, batch in objective.batches(None if share is None else share.spans):
        for span in (WHOLE,) if share is None else share.spans[number]:
            yield from pieces(number, batch, most, groups, span)
