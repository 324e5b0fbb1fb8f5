"""Empirical Fisher matrices: squares of the gradients that the data's own targets give, by sample or by token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError, HvpEngineError, RowError
from hvp_engine.operators.rows.graph import RowGraph
from hvp_engine.operators.rows.operator import RowOperator
from hvp_engine.problem import batches
from hvp_engine.problem.objective import MicroBatch
from hvp_engine.problem.steady import Key
from hvp_engine.problem.weights import check_split


class EmpiricalFisherOperator(RowOperator):
    """Products with the empirical Fisher matrix by samples.

    With t_i the total of sample i alone (the value of a mean loss; of a loss that returns (total, weight) its total, a
    sequence's sum over tokens, say) and g_i its gradient, the matrix is

        E = (sum over samples of g_i g_i') / (sum of batch weights).

    Where rows of the loss are found (:mod:`hvp_engine.operators.rows.losses`) and add up to the samples' totals, one
    graph serves all samples of a micro-batch; elsewhere each sample goes through the loss by itself.
    """

    matrix = "empirical_fisher"
    _split = False  # whether batches were seen to be what their samples add up to

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take what every operator takes.

        Raises:
            HvpEngineError: One of its subclasses, for anything that would make the products wrong, samples among it
                that cannot be told apart or do not add up to their batch.
        """
        self._together: dict[Key, bool] = {}  # whether a micro-batch's rows were seen to add up to its samples' totals
        super().__init__(*args, **options)

    def _graph(self, micro: MicroBatch) -> RowGraph:
        samples = batches.samples(micro.batch)
        if samples is None:
            what = "takes no data" if micro.batch is None else "has a batch whose tensors share no leading dimension"
            raise ConfigurationError(
                f"The empirical Fisher matrix adds up samples, and the loss {what}, by which samples can be told "
                'apart. Give data whose tensors all have one entry per sample, or take operator="fisher" or '
                '"empirical_fisher_tokens", which take the rows of the loss.'
            )
        key = micro.identity
        found = self._from_rows(micro, samples) if key is None or self._together.get(key, True) else None
        if found is not None and key is not None and key not in self._together:
            self._together[key] = self._adds_up(micro, samples, found[0])
            found = found if self._together[key] else None
        values, weight = self._one_by_one(micro, samples) if found is None else found
        return self._graph_of(micro, values, torch.ones_like(values), weight)

    def _from_rows(self, micro: MicroBatch, samples: int) -> tuple[Tensor, float] | None:
        """Return the samples' totals (samples,) by one evaluation, and the weight; None where that cannot be."""
        if samples == 1:
            total, weight = self._evaluate(micro)
            return total[None], weight
        try:
            if not self._in_order(micro.batch):
                return None
            rows, weight = self._rows(micro, None)
        except RowError:
            return None
        if len(rows.losses) % samples:
            return None
        return (rows.losses * rows.weights).reshape(samples, -1).sum(1), weight

    def _adds_up(self, micro: MicroBatch, samples: int, totals: Tensor) -> bool:
        """Say whether totals are those of the samples by themselves."""
        if samples == 1:
            return True
        with self.objective.looking(micro.batch):
            try:
                alone = [float(self.objective.evaluate(batches.cut(micro.batch, i, i + 1))[0]) for i in range(samples)]
            except HvpEngineError:  # a mean over no target, say; taken one by one it says so itself
                return False
        return self._alike(totals.detach(), totals.new_tensor(alone))

    def _one_by_one(self, micro: MicroBatch, samples: int) -> tuple[Tensor, float]:
        """Return the samples' totals (samples,), each evaluated by itself, and the sum of their weights.

        Raises:
            ConfigurationError: They do not add up to the micro-batch.
        """
        (number, start), batch = micro.key, micro.batch
        if not self._split and not micro.is_sample:
            check_split(self.objective, 1)
            self._split = True
        alone = [
            self._evaluate(replace(micro, key=(number, start + i), batch=batches.cut(batch, i, i + 1)))
            for i in range(samples)
        ]
        return torch.stack([total for total, _ in alone]), sum(weight for _, weight in alone)


class TokenEmpiricalFisherOperator(RowOperator):
    """Products with the empirical Fisher matrix by tokens: the rows of a loss, be they tokens, samples or elements.

    With g_r the gradient of row r's loss, as reduction="none" gives it for the data's own target, and c_r the weight
    with which it enters the total, the matrix is

        E = (sum over rows of c_r g_r g_r') / (sum of batch weights):

    that of :class:`hvp_engine.operators.fisher.FisherOperator` with the data's targets in place of drawn ones.
    """

    matrix = "empirical_fisher_tokens"

    def _graph(self, micro: MicroBatch) -> RowGraph:
        rows, weight = self._rows(micro, None)
        return self._graph_of(micro, rows.losses, rows.weights, weight)
