"""What products with other matrices than the Hessian are said to cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import gpt, mlp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hvp_engine as he
from hvp_engine.blocks import resolve
from hvp_engine.errors import ConfigurationError
from hvp_engine.operators.registry import OPERATORS, operator_named
from hvp_engine.planning.counting import JobCounter, data_shape
from hvp_engine.planning.plan import plan

ROWS = ("fisher", "empirical_fisher", "empirical_fisher_tokens")


@pytest.mark.parametrize("name", ["hessian", *ROWS])
@pytest.mark.parametrize("block", ["full", "0.weight", "4.bias"])
def test_matrix_products_are_counted_as_they_are_run(name: str, block: str) -> None:
    case = mlp()
    data = case.data[:1]
    blocks: Any = None if block == "full" else [block]
    kind = operator_named(name)
    counter = JobCounter(
        case.model, case.loss, data_shape(data, torch.float32), resolve(case.model, blocks), operator=kind
    )
    counted = counter.count(None).blocks[block].flop
    operator = kind(case.model, case.loss, blocks, data=data)
    vectors = {block: torch.ones(1, operator.numel[block])}
    operator.matmat(vectors)  # from here on the graph is kept
    with FlopCounterMode(display=False) as run:
        operator.sweep(vectors)
    assert counted == run.get_total_flops()


@pytest.mark.parametrize("name", list(OPERATORS))
def test_every_operator_has_a_plan(name: str) -> None:
    case = mlp()
    found = plan(case.model, case.loss, data=case.data, device="a100-80gb", steps=5, probes=1, operator=name)
    assert found.flop > 0
    assert (f"the matrix is operator={name!r}" in found.notes) == (name != "hessian")


def test_products_without_second_derivatives_cost_less() -> None:
    case = gpt()
    fisher, hessian = (
        plan(case.model, case.loss, data=case.data, device="a100-80gb", steps=5, probes=1, operator=name)
        for name in ("fisher", "hessian")
    )
    assert fisher.flop < hessian.flop


def test_a_plan_for_this_machine_measures_the_operator_that_was_asked_for() -> None:
    case = mlp()
    found = plan(case.model, case.loss, data=case.data, steps=3, probes=1, operator="fisher")
    assert found.calibrated


def test_a_loss_without_rows_has_no_plan_and_a_reason() -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1]) + model[0].weight.square().sum()

    case = mlp()
    with pytest.raises(ConfigurationError, match="cannot be counted: .* time a job with steps=1"):
        plan(case.model, loss, data=case.data, device="a100-80gb", steps=3, probes=1, operator="empirical_fisher")
    he.slq(case.model, loss, data=case.data[:1], steps=1, probes=1, operator="empirical_fisher", progress=False)


def test_an_operator_that_there_is_not_is_refused() -> None:
    case = mlp()
    with pytest.raises(ConfigurationError, match="operator='hesse' is not one of"):
        plan(case.model, case.loss, data=case.data, operator="hesse")
