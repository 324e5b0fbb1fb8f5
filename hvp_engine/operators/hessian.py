"""The Hessian of an objective as a block-diagonal operator."""

from __future__ import annotations

from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.problem.objective import MicroBatch


class HessianOperator(CurvatureOperator):
    """Products H_bb v with the diagonal blocks of an objective's Hessian.

    Reverse-over-reverse (Pearlmutter 1994): the gradient of a micro-batch is kept as a graph, and a second backward
    pass through it, pruned to the block, multiplies by the block's Hessian.

    Attributes:
        blocks: Block names in order.
        numel: Length of each block's vectors.
        notes: What was decided about tied and frozen parameters, in plain words.
    """

    matrix = "hessian"

    def _graph(self, micro: MicroBatch) -> GradientGraph:
        parameters = self._parameters_of(micro.blocks)
        graph = GradientGraph(*self._evaluate(micro), parameters, of_all_blocks=micro.blocks is None)
        self._inspection.refuse_cuts((micro.key, micro.blocks), graph)
        return graph
