"""Graphs by way of the model's outputs on tensors without data: fused losses are known by their kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from hvp_engine.operators.gauss_newton_graph import GaussNewtonGraph, OutputGraph, ResidualGraph
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.outputs.find import FusedLoss, LossTerm, unchecked_weights
from hvp_engine.ops.head.by_tokens import Part
from hvp_engine.ops.head.parts import HeadParts
from hvp_engine.planning.head_shapes import HeadKernel
from hvp_engine.planning.shapes import LossKernel, kernel_of


class _HeadShapes(HeadParts):
    """Derivatives of a fused head's loss without their arithmetic."""

    def slopes(self, node: Any, scale: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
        """Count one product per wanted gradient, and allocate the results."""
        kernel, operands = node.kernel, node.saved_tensors[:3]
        kernel.count(kernel.backward(operands, wanted), operands)
        return _rooms(operands, wanted)

    def product(
        self, node: Any, scale: Tensor, tangents: Sequence[Tensor | None], wanted: Sequence[bool], part: Part
    ) -> tuple[Tensor, ...]:
        """Count the products of a part, and allocate the results."""
        kernel, operands = node.kernel, node.saved_tensors[:3]
        count = next(t.shape[0] for t in tangents if t is not None)
        given = [t is not None for t in tangents]
        kernel.count(kernel.part(given, wanted, part, count), (*operands, *tangents))
        return tuple(room.new_empty((count, *room.shape)) for room in _rooms(operands, wanted))


def _rooms(operands: Sequence[Tensor | None], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Allocate something in the shapes of wanted operands."""
    first = operands[0]
    assert first is not None
    pairs = zip(operands, wanted, strict=True)
    return tuple(first.new_empty(t.shape if want and t is not None else (0,)) for t, want in pairs)


class _OnShapes(OutputGraph):
    def _recognise(self, node: Node) -> FusedLoss | None:
        kernel = kernel_of(node)
        if isinstance(kernel, HeadKernel):
            return FusedLoss(_HeadShapes())
        return FusedLoss() if isinstance(kernel, LossKernel) else None

    def _weights(self, total: Tensor, terms: tuple[LossTerm, ...]) -> list[Tensor]:
        return unchecked_weights(total, terms)


class _GaussNewtonOnShapes(_OnShapes, GaussNewtonGraph):
    pass


class _ResidualOnShapes(_OnShapes, ResidualGraph):
    pass


STAND_INS: dict[type[GradientGraph], type[GradientGraph]] = {
    GaussNewtonGraph: _GaussNewtonOnShapes,
    ResidualGraph: _ResidualOnShapes,
}
