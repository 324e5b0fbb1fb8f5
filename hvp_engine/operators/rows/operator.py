"""What the operators share that multiply by sums of squares of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.operators.rows.draws import Place
from hvp_engine.operators.rows.graph import RowGraph
from hvp_engine.operators.rows.losses import RowRecorder, Rows
from hvp_engine.problem import batches
from hvp_engine.problem.objective import MicroBatch

ALIKE = {"fp64": 1e-6, "fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}  # of the largest: rounding, and no other sample's row


class RowOperator(CurvatureOperator):
    """Products with a sum over rows, or over samples, of squares of their gradients."""

    uses_head_curvature = False
    _ordered: bool | None = None  # whether rows follow the order of samples, once that was seen

    def _rows(self, micro: MicroBatch, place: Place | None) -> tuple[Rows, float]:
        """Return the rows of a micro-batch, and its weight."""
        recorder = RowRecorder(place)
        total, weight = self._evaluate(micro, recorder)
        return recorder.rows(total, self._parameters), weight

    def _graph_of(self, micro: MicroBatch, values: Tensor, factors: Tensor, weight: float) -> RowGraph:
        parameters = self._parameters_of(micro.blocks)
        graph = RowGraph(values, factors, weight, parameters, of_all_blocks=micro.blocks is None)
        self._inspection.refuse_cuts((micro.key, micro.blocks), graph)
        if micro.is_kept:
            graph.compile(self.compiler)
        return graph

    def _in_order(self, batch: Any) -> bool:
        """Say whether rows come sample by sample: two samples give the rows of the first, then those of the second.

        Their order follows from how the loss is written; it is looked at once.
        """
        samples = batches.samples(batch)
        if self._ordered is None and samples is not None and samples > 1:
            first, second, both = (self._look_at_rows(batches.cut(batch, *ends)) for ends in ((0, 1), (1, 2), (0, 2)))
            apart = torch.cat((first, second), dim=1)
            self._ordered = apart.shape == both.shape and self._alike(apart, both)
        return self._ordered is not False

    def _look_at_rows(self, batch: Any) -> Tensor:
        """Return what each row adds to the total, and its derivative along a direction, (2, rows)."""
        recorder = RowRecorder()
        with recorder:
            total, weight = self.objective.evaluate(batch)
        rows = recorder.rows(total, self._parameters)
        graph = RowGraph(rows.losses * rows.weights, rows.weights, weight, self._parameters)
        return torch.stack((rows.losses.detach() * rows.weights, graph.slopes()))

    def _alike(self, found: Tensor, wanted: Tensor) -> bool:
        """Say whether numbers, or the rows of a matrix, are equal but for rounding."""
        scale = wanted.abs().amax(-1, keepdim=True)
        return bool(((found - wanted).abs() <= ALIKE[self.objective.precision] * scale).all())
