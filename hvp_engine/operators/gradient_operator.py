"""What the operators share whose products are backward passes through the graph of a gradient."""

from __future__ import annotations

from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.problem.objective import MicroBatch


class GradientOperator(CurvatureOperator):
    """Products by the graph of a micro-batch's gradient; a subclass names the graph that multiplies by its matrix."""

    def _graph(self, micro: MicroBatch) -> GradientGraph:
        parameters = self._parameters_of(micro.blocks)
        graph = self.graph(*self._evaluate(micro), parameters, of_all_blocks=micro.blocks is None)
        self._inspection.refuse_cuts((micro.key, micro.blocks), graph)
        if micro.is_kept:
            graph.compile(self.compiler)
        return graph
