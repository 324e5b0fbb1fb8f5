"""Objectives: weighting, and a clear message for everything that defines none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import gpt, mlp
from refusals import mean_loss, one_sweep, refuse
from torch import nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, NonDeterministicError, ObjectiveError
from hvp_engine.problem.objective import Objective


def test_a_loss_that_is_not_scalar() -> None:
    case = mlp()
    refuse("must be a scalar tensor", case.model, lambda m, b: m(b[0]), case.data)
    refuse("must be a scalar tensor, got float", case.model, lambda m, b: 1.0, case.data)


def test_a_loss_with_three_values_or_a_negative_weight() -> None:
    case = mlp()
    refuse("returned 3 values", case.model, lambda m, b: (mean_loss(m, b), 1, 2), case.data)
    refuse("negative weight", case.model, lambda m, b: (mean_loss(m, b), -1), case.data)


def test_a_second_value_that_is_no_weight() -> None:
    case = mlp()
    refuse("no number", case.model, lambda m, b: (mean_loss(m, b), m(b[0])), case.data)
    refuse("no number", case.model, lambda m, b: (mean_loss(m, b), None), case.data)
    refuse("depends on the model", case.model, lambda m, b: (mean_loss(m, b), m(b[0]).exp().mean()), case.data)


@pytest.mark.parametrize("error", [AttributeError, AssertionError, ZeroDivisionError, KeyError, StopIteration])
def test_whatever_a_loss_raises_is_reported_as_the_losss_error(error: type[Exception]) -> None:
    case = mlp()

    def failing(model: nn.Module, batch: Any) -> Any:
        raise error("the cause")

    refuse(f"The loss raised {error.__name__}: .*the cause", case.model, failing, case.data)


def test_complex_buffers_survive_a_change_of_precision() -> None:
    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("turn", torch.tensor([1j, -1j]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            turned: torch.Tensor = (self.linear(x) * self.turn).imag.tanh().sum()
            return turned

    torch.manual_seed(0)
    model, x, vectors = Rotated(), torch.randn(3, 2), {"full": torch.eye(6)}
    products = {
        precision: he.hvp(model, lambda m, b: m(b), vectors, data=[x], precision=precision)["full"].float()
        for precision in ("fp32", "fp64")
    }
    assert products["fp64"].norm() > 0.1
    torch.testing.assert_close(products["fp32"], products["fp64"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(bad: float) -> None:
    case = mlp()
    refuse("not finite", case.model, lambda m, b: mean_loss(m, b) * bad, case.data)


def test_a_loss_that_ignores_the_model() -> None:
    case = mlp()
    refuse("does not depend", case.model, lambda m, b: torch.tensor(1.0), case.data)
    refuse("does not depend", case.model, lambda m, b: mean_loss(m, b).detach(), case.data)


def test_a_loss_that_uses_another_model_than_the_one_it_is_given() -> None:
    case = mlp()
    with pytest.raises(ObjectiveError, match="must use the model it is given"):
        he.hvp(case.model, lambda m, b: mean_loss(case.model, b), {}, data=case.data, precision="fp64")


def test_a_loss_that_raises() -> None:
    case = mlp()
    refuse("The loss raised KeyError|The loss raised TypeError", case.model, lambda m, b: m(b["x"]), case.data)


def test_all_targets_ignored() -> None:
    case = gpt()
    data = [(inputs, torch.full_like(targets, he.losses.IGNORE)) for inputs, targets in case.data]
    refuse("every target is ignored", case.model, case.loss, data)


def test_dropout_is_named() -> None:
    case = mlp()
    model = nn.Sequential(case.model, nn.Dropout(0.5))
    refuse("dropout is active in 1", model, mean_loss, case.data, NonDeterministicError)
    one_sweep(model.eval(), mean_loss, case.data)


def test_other_randomness_is_described() -> None:
    case = mlp()
    refuse(
        "draws random numbers",
        case.model,
        lambda m, b: mean_loss(m, b) * (1 + torch.rand(())),
        case.data,
        NonDeterministicError,
    )


class Shifting:
    """Data that changes after some passes."""

    def __init__(self, passes: list[list[Any]]) -> None:
        self.passes, self.count = passes, 0

    def __iter__(self) -> Any:
        current = self.passes[min(self.count, len(self.passes) - 1)]
        self.count += 1
        return iter(current)


def test_data_that_changes_between_sweeps() -> None:
    data = mlp().data
    steady = [list(data)] * 3
    for later, match in (
        ([data[1], data[0], data[2]], "Batch 0 changed between sweeps"),
        (data[:2], "3 batches in the first sweep and 2"),
        ([*data, data[0]], "more batches than in the first sweep"),
    ):
        case = mlp()
        operator = he.HessianOperator(case.model, mean_loss, data=Shifting([*steady, later]))
        vector = {"full": torch.ones(1, operator.numel["full"])}
        operator.matmat(vector)
        operator.release()
        with pytest.raises(NonDeterministicError, match=match):
            operator.matmat(vector)


def test_shapes_that_change_between_sweeps_are_told_from_values() -> None:
    case = mlp()
    shorter = [(x[:1], y[:1]) for x, y in case.data]
    operator = he.HessianOperator(case.model, mean_loss, data=Shifting([case.data] * 2 + [shorter]))
    with pytest.raises(NonDeterministicError, match=r"shapes \(1, 5\), \(1,\) instead of \(5, 5\), \(5,\)"):
        operator.matmat({"full": torch.ones(1, operator.numel["full"])})


def test_splitting_a_mean_that_is_not_over_samples_is_refused() -> None:
    case = gpt()

    def token_mean(model: nn.Module, batch: Any) -> torch.Tensor:
        total, weight = he.losses.causal_lm(model, batch)
        return total / weight

    with pytest.raises(ConfigurationError, match=r"Return \(total, weight\)"):
        he.HessianOperator(case.model, token_mean, data=case.data[:1], microbatch=1)


def test_bad_arguments() -> None:
    case = mlp()
    with pytest.raises(ConfigurationError, match="precision='fp16'"):
        Objective(case.model, mean_loss, case.data, "fp16")
    with pytest.raises(ConfigurationError, match="must be a torch.nn.Module"):
        Objective("model", mean_loss, case.data, "fp32")  # type: ignore[arg-type]
    for option in (
        {"microbatch": 2.5},
        {"microbatch": "2"},
        {"memory": 0},
        {"memory": "8GiB"},
        {"memory": float("nan")},
    ):
        with pytest.raises(ConfigurationError, match=f"{next(iter(option))}=.* must be a"):
            he.HessianOperator(case.model, case.loss, data=case.data, **option)
    with pytest.raises(ConfigurationError, match="microbatch=0"):
        he.HessianOperator(case.model, mean_loss, data=case.data, microbatch=0)
    for options, match in (
        ({"steps": 0}, "steps=0"),
        ({"probes": 1.5}, "probes=1.5"),
        ({"distribution": "uniform"}, "distribution='uniform'"),
        ({"reorthogonalize": "partial"}, "reorthogonalize='partial'"),
        ({"basis": "fp16"}, "basis='fp16'"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            he.slq(case.model, mean_loss, data=case.data, **options)


def test_vectors_of_the_wrong_shape_name_or_content() -> None:
    case = mlp()
    operator = he.HessianOperator(case.model, mean_loss, ["0.weight"], data=case.data)
    with pytest.raises(ConfigurationError, match=r"must have shape \(k, 35\), got \(35,\)"):
        operator.matmat({"0.weight": torch.ones(35)})
    with pytest.raises(he.HvpEngineError, match="no block '0.bias'"):
        operator.matmat({"0.bias": torch.ones(1, 7)})
    with pytest.raises(ConfigurationError, match="must be a mapping"):
        operator.matmat([torch.ones(1, 35)])  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="is complex"):
        operator.matmat({"0.weight": torch.ones(1, 35, dtype=torch.complex64)})
    with pytest.raises(ConfigurationError, match="must be finite"):
        operator.matmat({"0.weight": torch.full((1, 35), float("nan"))})


def test_gradient_mode_of_the_caller_does_not_matter() -> None:
    case = mlp()
    with torch.no_grad():
        quiet = he.hvp(case.model, mean_loss, {"full": torch.ones(1, 111)}, data=case.data)["full"]
    loud = he.hvp(case.model, mean_loss, {"full": torch.ones(1, 111)}, data=case.data)["full"]
    assert torch.equal(quiet, loud)


def test_half_precision_parameters_are_studied_in_float32() -> None:
    case = mlp()
    rounded = mlp()
    for parameter in rounded.model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    half = mlp().model.to(torch.bfloat16)
    data = [(x.bfloat16(), y) for x, y in case.data]
    widened = [(x.bfloat16().float(), y) for x, y in case.data]
    found = he.hvp(half, mean_loss, {"full": torch.ones(1, 111)}, data=data)["full"]
    wanted = he.hvp(rounded.model, mean_loss, {"full": torch.ones(1, 111)}, data=widened)["full"]
    torch.testing.assert_close(found, wanted)
    assert next(half.parameters()).dtype == torch.bfloat16
