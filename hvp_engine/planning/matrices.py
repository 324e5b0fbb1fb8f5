"""The graphs of operators on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn

from hvp_engine.errors import ConfigurationError, RowError
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.operators.rows.graph import RowGraph
from hvp_engine.operators.rows.losses import RowRecorder
from hvp_engine.operators.rows.operator import RowOperator
from hvp_engine.planning.output_shapes import STAND_INS


class Kind(Protocol):
    """Makes the graph of one micro-batch.

    Attributes:
        within: What the loss is to run in.
    """

    within: AbstractContextManager[object]

    def graph(self, total: Tensor, parameters: dict[str, nn.Parameter]) -> GradientGraph:
        """Make the graph of a total that was evaluated inside."""


class _Plain:
    def __init__(self, kind: type[GradientGraph]) -> None:
        self.within: AbstractContextManager[object] = nullcontext()
        self._kind = kind

    def graph(self, total: Tensor, parameters: dict[str, nn.Parameter]) -> GradientGraph:
        return self._kind(total, 1.0, parameters)


class _OfRows:
    """The rows with the data's targets, which cost what drawn ones do but for the draw, and sums of them by sample."""

    def __init__(self) -> None:
        self._recorder = RowRecorder()
        self.within: AbstractContextManager[object] = self._recorder

    def graph(self, total: Tensor, parameters: dict[str, nn.Parameter]) -> GradientGraph:
        try:
            rows = self._recorder.rows(total, parameters)
        except RowError as error:
            raise ConfigurationError(
                f"What this matrix costs cannot be counted: {error} Such a loss takes one sample after the other; time "
                "a job with steps=1, whose progress shows what a step takes."
            ) from error
        return RowGraph(rows.losses, rows.weights, 1.0, parameters)


def on_shapes(operator: type[CurvatureOperator]) -> Callable[[], Kind]:
    """Return what makes the graph of an operator's micro-batch where tensors have no data, anew for every one."""
    if issubclass(operator, RowOperator):
        return _OfRows
    kind = STAND_INS.get(operator.graph, operator.graph)
    return lambda: _Plain(kind)
