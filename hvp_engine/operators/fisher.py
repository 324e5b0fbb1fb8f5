"""The Fisher matrix of a model's predictions, with targets drawn from them (Monte Carlo)."""

from __future__ import annotations

from hvp_engine.errors import ConfigurationError
from hvp_engine.operators.rows.draws import Place
from hvp_engine.operators.rows.graph import RowGraph
from hvp_engine.operators.rows.operator import RowOperator
from hvp_engine.problem import batches
from hvp_engine.problem.objective import MicroBatch


class FisherOperator(RowOperator):
    """Products with the Monte-Carlo Fisher matrix of the objective.

    Rows are the model's predictions as its losses take them: class distributions (cross-entropy of logits), normal
    numbers (squared errors, variance 1/2) or truth values (binary cross-entropy of logits). For every row r one target
    is drawn from the model's own prediction; with g_r the gradient of its negative log-likelihood and c_r the weight
    with which the row enters the total, class weights and masks included, the matrix is

        F = (sum over rows of c_r g_r g_r') / (sum of batch weights),

    positive semidefinite where weights are. On average over draws that is the generalised Gauss-Newton matrix. The
    same seed gives the same targets, however the data are cut.
    """

    matrix = "fisher"

    def _graph(self, micro: MicroBatch) -> RowGraph:
        samples = batches.samples(micro.batch)
        rows, weight = self._rows(micro, Place(self._seed, *micro.key, samples))
        count = len(rows.losses)
        if self._is_piece(micro) and samples and (count % samples or not self._in_order(micro.batch)):
            raise ConfigurationError(
                f"{count} rows of the loss do not belong to {samples} samples in their order, so that the targets "
                "drawn would depend on how batches are cut. Leave microbatch=None with more memory=, give the data in "
                "smaller batches, or keep positions without a target in, with ignore_index as theirs."
            )
        return self._graph_of(micro, rows.losses, rows.weights, weight)

    def _is_piece(self, micro: MicroBatch) -> bool:
        """Say whether a micro-batch is one of several that a batch was cut into."""
        if micro.is_sample or micro.batch is None:
            return False
        number, start = micro.key
        whole = next((entry.shape[0] for entry in self.objective.layouts[number] if entry.shape), None)
        return start > 0 or batches.leading(micro.batch) != whole
