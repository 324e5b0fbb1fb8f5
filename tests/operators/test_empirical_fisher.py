"""Empirical Fisher matrices against loops over samples and tokens in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fisher_oracles import Gradients, blocks_of, by_rows, by_samples, compare, flat_gradient
from problems import Case, gpt, mlp
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, ObjectiveError
from hvp_engine.operators.empirical_fisher import EmpiricalFisherOperator, TokenEmpiricalFisherOperator


@pytest.mark.parametrize(("precision", "microbatch"), [("fp32", None), ("fp64", 2)])
def test_products_by_samples_match_a_loop(case: Case, precision: str, microbatch: int | None) -> None:
    operator = EmpiricalFisherOperator(
        case.model, case.loss, blocks_of(case.model), data=case.data, precision=precision, microbatch=microbatch
    )
    compare(operator, by_samples(case), case.model, precision)
    assert all(operator._together.values())  # none went one by one


def tokens_of(model: nn.Module, number: int, batch: Any) -> Gradients:
    """Gradients of a language model's tokens; those without a target have none."""
    inputs, targets = batch
    losses = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none")
    for loss, target in zip(losses, targets.flatten(), strict=True):
        if target != he.losses.IGNORE:
            yield 1.0, flat_gradient(loss, model)


def test_products_by_tokens_match_a_loop() -> None:
    case = gpt()
    operator = TokenEmpiricalFisherOperator(
        case.model, case.loss, blocks_of(case.model), data=case.data, precision="fp64", microbatch=2
    )
    compare(operator, by_rows(case, tokens_of), case.model)


def test_one_token_per_sample_makes_both_the_same() -> None:
    case = mlp()
    one, other = (
        kind(case.model, case.loss, data=case.data, precision="fp64")
        for kind in (EmpiricalFisherOperator, TokenEmpiricalFisherOperator)
    )
    vectors = {"full": torch.randn(2, one.numel["full"], dtype=torch.float64)}
    torch.testing.assert_close(one.matmat(vectors), other.matmat(vectors))


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embedding = nn.Embedding(11, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embedding(tokens))).cumsum(1))


def tied() -> Case:
    data = [(torch.randint(0, 11, (n, 3)), torch.randint(0, 11, (n, 3))) for n in (2, 4)]
    data[1][1][0, :2] = he.losses.IGNORE
    return Case(Tied(), he.losses.causal_lm, data)


def test_tied_weights_are_one_parameter() -> None:
    case = tied()
    blocks = {"all of it": ["*"], "embedding.weight": ["embedding.weight"]}
    for kind, dense in (
        (EmpiricalFisherOperator, by_samples(case)),
        (TokenEmpiricalFisherOperator, by_rows(case, tokens_of)),
    ):
        compare(kind(case.model, case.loss, blocks, data=case.data, precision="fp64"), dense, case.model)


def written_out(model: nn.Module, batch: Any) -> Tensor:
    """A loss that calls nothing that is known."""
    x, y = batch
    return (model(x).log_softmax(1).exp()[torch.arange(len(y)), y] - 1.0).square().mean() + 0.1 * model[
        0
    ].weight.tanh().square().sum()


def columns_first(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Tokens in another order than samples: rows of one sample lie apart."""
    x, y = batch
    logits = model(x).transpose(0, 1).flatten(0, 1)
    return F.cross_entropy(logits, y.T.flatten(), reduction="sum"), torch.tensor(float(y.numel()))


def masked(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Tokens without a target are cut out, so that samples have different numbers of rows."""
    x, y = batch
    kept = y != he.losses.IGNORE
    return F.cross_entropy(model(x)[kept], y[kept], reduction="sum"), kept.sum()


def test_losses_whose_rows_are_not_found_go_sample_by_sample() -> None:
    case = mlp()
    case = Case(case.model, written_out, case.data)
    operator = EmpiricalFisherOperator(case.model, case.loss, blocks_of(case.model), data=case.data, precision="fp64")
    compare(operator, by_samples(case), case.model)


@pytest.mark.parametrize("loss", [columns_first, masked])
@pytest.mark.parametrize("zero", [False, True])
def test_rows_in_another_order_than_samples_are_told_from_theirs(loss: Any, zero: bool) -> None:
    case = tied()
    if zero:  # every token has the loss log(11)
        case.model.embedding.weight.data.zero_()
    if loss is columns_first:
        case.data[1][1].clamp_(min=0)
    else:  # as many rows in all as if every sample had as many
        case.data[0][1][0, :2] = he.losses.IGNORE
    case = Case(case.model, loss, case.data)
    operator = EmpiricalFisherOperator(case.model, case.loss, blocks_of(case.model), data=case.data, precision="fp64")
    compare(operator, by_samples(case), case.model)


def test_samples_that_are_none_are_refused() -> None:
    model = nn.Linear(3, 1)
    with pytest.raises(ConfigurationError, match="takes no data"):
        EmpiricalFisherOperator(model, lambda m: m(torch.ones(2, 3)).square().sum())
    uneven = [(torch.randn(4, 3), torch.randn(2, 1))]
    with pytest.raises(ConfigurationError, match="share no leading dimension"):
        EmpiricalFisherOperator(model, lambda m, b: (m(b[0][:2]) - b[1]).square().mean(), data=uneven)


def test_a_loss_that_is_no_sum_over_samples_is_refused() -> None:
    case = mlp()

    def contrast(model: nn.Module, batch: Any) -> Tensor:
        outputs = model(batch[0])
        return (outputs @ outputs.T).square().mean()

    operator = EmpiricalFisherOperator(case.model, contrast, data=case.data[:1])
    with pytest.raises(ConfigurationError, match="into micro-batches of 1 changes"):
        operator.matmat({"full": torch.randn(1, operator.numel["full"])})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda m, b: F.cross_entropy(m(b[0]), b[1]) + 1e-3 * m[0].weight.square().sum(),
            "depends on the parameter '0.weight'",
        ),
        (lambda m, b: F.cross_entropy(m(b[0]), b[1]).exp(), "no sum of its rows' losses"),
        (lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none").square().mean(), "no sum of its rows' losses"),
        (lambda m, b: m(b[0]).square().mean(), "depends on the parameter"),
    ],
)
def test_losses_that_are_no_sums_of_rows_are_refused_with_what_takes_them(loss: Any, message: str) -> None:
    case = mlp()
    with pytest.raises(ObjectiveError, match=message) as refused:
        TokenEmpiricalFisherOperator(case.model, loss, data=case.data[:1])
    assert 'operator="empirical_fisher" takes any loss' in str(refused.value)
    EmpiricalFisherOperator(case.model, loss, data=case.data[:1])
