"""How much a sample's graph keeps alive, and what is in it that decides how much its passes need beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from hvp_engine.problem.objective import MicroBatch
from hvp_engine.scheduling.passes import ProductGraph
from hvp_engine.system.measured_graph import build_and_weigh


class Weighed(NamedTuple):
    """What was seen of a graph.

    Attributes:
        bytes: What it keeps alive, parameters not counted.
        convolves: Whether it has convolutions, as far as it says.
    """

    bytes: int
    convolves: bool


def weigh(build: Callable[[MicroBatch], ProductGraph], batch: object, parameters: list[Tensor]) -> Weighed:
    """Build the graph of some samples, and measure it.

    Args:
        build: Makes the graph of a micro-batch.
        batch: The samples.
        parameters: Tensors that do not count.
    """
    micro = MicroBatch((-1, 0), batch, is_sample=True)
    graph, size = build_and_weigh(lambda: build(micro), _roots, parameters)
    return Weighed(size, bool(getattr(graph, "convolves", False)))


def _roots(graph: ProductGraph) -> Iterable[Tensor | None]:
    """Return the tensors that hold a graph, as far as it says."""
    gradients: Mapping[str, Tensor | None] = getattr(graph, "gradients", {})
    return gradients.values()
