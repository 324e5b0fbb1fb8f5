"""How large the graphs of a job's micro-batches are: measured on one and two samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvp_engine.problem import batches
from hvp_engine.problem.objective import MicroBatch, Objective
from hvp_engine.scheduling import policy
from hvp_engine.scheduling.passes import ProductGraph
from hvp_engine.scheduling.weighing import weigh


class GraphSizes:
    """Measures graphs, and remembers whether they convolve."""

    def __init__(
        self,
        objective: Objective,
        build: Callable[[MicroBatch], ProductGraph],
        parameters: Sequence[Tensor],
        beside: int,
    ) -> None:
        """Measure nothing yet.

        Args:
            objective: Loss and data.
            build: Makes the graph of one micro-batch.
            parameters: Those of the blocks.
            beside: Bytes that passes take whatever the graph.
        """
        self._objective, self._build, self._parameters = objective, build, list(parameters)
        self._beside = beside
        self._convolves = False

    def measured(self, batch: Any, size: int | None) -> policy.GraphSize:
        """Measure graphs of one and two samples; the batch's own where it cannot be cut.

        Args:
            batch: The largest of the data.
            size: Its samples; None where it cannot be cut.
        """

        def graph_bytes(samples: int | None) -> int:
            return self._bytes(batch if samples is None else batches.cut(batch, 0, samples))

        measured = policy.GraphSize.measured(size, graph_bytes)
        return replace(measured, transient=self.transient_in(self._objective.dtype), beside=self._beside)

    def transient_in(self, dtype: torch.dtype) -> float:
        """Return what a graph takes with the temporaries of its passes, in units of the graph, in a working dtype."""
        return policy.transient(dtype, convolves=self._convolves, on_cpu=self._objective.device.type == "cpu")

    def _bytes(self, batch: object) -> int:
        size, convolves = weigh(self._build, batch, self._parameters)
        self._convolves |= convolves
        return size
