"""Monte-Carlo Fisher matrices: against loops with the same drawn targets, and their mean against Gauss-Newton's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fisher_oracles import Gradients, blocks_of, by_rows, compare, flat_gradient
from problems import Case, cnn, dense_hessian, gpt, mlp
from scipy.special import ndtri
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError, ObjectiveError
from hvp_engine.operators.fisher import FisherOperator
from hvp_engine.operators.rows.draws import Place, draw_classes


def numbers(seed: int, batch: int, rows: int, call: int = 0) -> Any:
    """The numbers in (0, 1) of a batch's rows, as the definition has them."""
    key = hashlib.blake2b(f"{seed}\0{batch}\0{call}".encode(), digest_size=16, person=b"targets").digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64))).random(rows)


def drawn_classes(logits: Tensor, uniforms: Any) -> Tensor:
    sums = logits.detach().softmax(1).cumsum(1).numpy()
    return torch.tensor([int(np.searchsorted(row / row[-1], u)) for row, u in zip(sums, uniforms, strict=True)])


def of_classes(seed: int) -> Callable[[nn.Module, int, Any], Gradients]:
    """Rows of a cross-entropy over the last dimension, with drawn targets in place of those that there are."""

    def rows(model: nn.Module, number: int, batch: Any) -> Gradients:
        inputs, targets = batch
        logits = model(inputs).flatten(0, -2)
        drawn = drawn_classes(logits, numbers(seed, number, len(logits)))
        losses = F.cross_entropy(logits, drawn, reduction="none")
        for loss, target in zip(losses, targets.flatten(), strict=True):
            if target != he.losses.IGNORE:
                yield 1.0, flat_gradient(loss, model)

    return rows


@pytest.mark.parametrize(("precision", "microbatch"), [("fp32", None), ("fp64", 2)])
def test_products_match_a_loop_with_the_same_targets(case: Case, precision: str, microbatch: int | None) -> None:
    operator = FisherOperator(
        case.model,
        case.loss,
        blocks_of(case.model),
        data=case.data,
        precision=precision,  # type: ignore[arg-type]
        microbatch=microbatch,
        seed=3,
    )
    compare(operator, by_rows(case, of_classes(3)), case.model, precision)


def test_targets_are_the_same_however_batches_are_cut() -> None:
    torch.manual_seed(0)
    for rows in (1, 3, 8):
        whole = Place(5, 2, 0, 7).uniforms(1, 7 * rows)
        for start, stop in ((0, 2), (2, 3), (3, 7)):
            piece = Place(5, 2, start, stop - start).uniforms(1, (stop - start) * rows)
            assert torch.equal(piece, whole[start * rows : stop * rows])
    assert not torch.equal(whole, Place(5, 2, 0, 7).uniforms(0, 56))
    assert not torch.equal(whole, Place(6, 2, 0, 7).uniforms(1, 56))
    assert not torch.equal(whole, Place(5, 1, 0, 7).uniforms(1, 56))


def test_the_same_seed_gives_the_same_bits_and_another_one_another_matrix() -> None:
    case = mlp()
    found = [
        he.slq(case.model, case.loss, data=case.data, steps=4, probes=1, operator="fisher", seed=seed)[
            "full"
        ].extremes()
        for seed in (1, 1)
    ]
    assert found[0] == found[1]
    one, other = (FisherOperator(case.model, case.loss, data=case.data, seed=seed) for seed in (1, 2))
    vectors = {"full": torch.ones(1, one.numel["full"])}
    assert not torch.allclose(one.matmat(vectors)["full"], other.matmat(vectors)["full"], rtol=1e-2)


def mean_over_draws(model: nn.Module, loss: Callable[..., Any], data: Any, draws: int) -> tuple[Tensor, Tensor]:
    """Mean of the dense matrix over seeds, and the standard error of each of its entries."""
    operator = FisherOperator(model, loss, data=data, precision="fp64")
    unit = torch.eye(operator.numel["full"], dtype=torch.float64)
    operator.scheduler.plan.streams_per_pass = len(unit)
    found = []
    for seed in range(draws):
        operator._seed = seed
        operator.release()
        found.append(operator.sweep({"full": unit})["full"])
    stacked = torch.stack(found)
    return stacked.mean(0), stacked.std(0) / draws**0.5


def smoothed(model: nn.Module, batch: Any) -> Tensor:
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=batch[0].dtype)
    return F.cross_entropy(model(batch[0]), batch[1], weight, label_smoothing=0.2, reduction="sum") / len(batch[1])


def masked(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    kept = (batch[1] != 1).to(losses.dtype)
    return (losses * kept * 3.0).sum(), kept.sum()


def of_probabilities(model: nn.Module, batch: Any) -> Tensor:
    targets = F.one_hot(batch[1], 3).to(batch[0].dtype) * 0.7 + 0.1
    return nn.CrossEntropyLoss(label_smoothing=0.1)(model(batch[0]), targets)


def of_images(model: nn.Module, batch: Any) -> Tensor:
    logits = model(batch[0])[:, :, None].expand(-1, -1, 2)
    return F.cross_entropy(logits, batch[1][:, None].expand(-1, 2))


LOSSES: dict[str, Callable[..., Any]] = {
    "cross-entropy": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
    "class weights and smoothing": smoothed,
    "weights of rows": masked,
    "probabilities": of_probabilities,
    "images": of_images,
    "negative log-likelihood": lambda m, b: F.nll_loss(m(b[0]).log_softmax(1), b[1]),
    "squares": lambda m, b: F.mse_loss(m(b[0]), F.one_hot(b[1], 3).to(b[0].dtype)),
    "sum of squares": lambda m, b: F.mse_loss(m(b[0]), b[0][:, :3], reduction="sum") / len(b[0]),
    "truths": lambda m, b: F.binary_cross_entropy_with_logits(
        m(b[0]), (b[0][:, :3] > 0).to(b[0].dtype), pos_weight=b[0].new_tensor([1.0, 3.0, 0.5])
    ),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_the_mean_over_draws_is_the_gauss_newton_matrix(name: str) -> None:
    # On a linear model that is the Hessian.
    torch.manual_seed(7)
    model = nn.Linear(4, 3)
    data = [(torch.randn(n, 4), torch.randint(0, 3, (n,))) for n in (9,)]
    mean, error = mean_over_draws(model, LOSSES[name], data, 80)
    hessian = dense_hessian(Case(model, LOSSES[name], data))
    floor = 1e-3 * float(hessian.abs().max())
    assert float(((mean - hessian).abs() / (error + floor)).max()) < 5.0
    assert float((mean - hessian).norm() / hessian.norm()) < 0.3


def test_a_row_is_drawn_from_its_own_distribution() -> None:
    torch.manual_seed(1)
    logits = 2.0 * torch.randn(3, 5)
    uniforms = torch.from_numpy(np.random.default_rng(0).random(30_000))
    drawn = draw_classes(lambda first, last: logits.repeat(10_000, 1)[first:last], 5, uniforms).reshape(-1, 3)
    for row in range(3):
        shares = torch.bincount(drawn[:, row], minlength=5) / 10_000
        assert float((shares - logits[row].softmax(0)).abs().max()) < 0.02


def test_elements_of_a_regression_are_drawn_with_variance_one_half() -> None:
    torch.manual_seed(2)
    model = nn.Linear(4, 2)
    data = [torch.randn(3, 4)]
    operator = FisherOperator(model, lambda m, x: F.mse_loss(m(x), x[:, :2], reduction="sum") / 3, data=data, seed=4)
    normal = torch.from_numpy(ndtri(numbers(4, 0, 6))).reshape(3, 2)
    dense: Tensor | float = 0.0
    for i in range(3):
        for k in range(2):
            gradients = torch.autograd.grad(model(data[0])[i, k], list(model.parameters()))
            g = -(2.0**0.5) * normal[i, k] * torch.cat([g.reshape(-1) for g in gradients]).double()
            dense = dense + torch.outer(g, g) / 3
    assert isinstance(dense, Tensor)
    compare(operator, dense, model, "fp32")


def columns_first(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    logits = model(batch[0]).transpose(0, 1).flatten(0, 1)
    return F.cross_entropy(logits, batch[1].T.flatten(), reduction="sum"), torch.tensor(float(batch[1].numel()))


def test_rows_in_another_order_than_samples_are_refused_where_batches_are_cut() -> None:
    case = gpt()
    for _, targets in case.data:
        targets.clamp_(min=0)
    vectors = {"full": torch.randn(1, sum(p.numel() for p in case.model.parameters()))}
    FisherOperator(case.model, columns_first, data=case.data).matmat(vectors)
    with pytest.raises(ConfigurationError, match="Leave microbatch=None"):
        FisherOperator(case.model, columns_first, data=case.data, microbatch=2).matmat(vectors)


def test_numbers_that_are_no_distribution_are_refused() -> None:
    case = mlp()
    with pytest.raises(ObjectiveError, match="apply log_softmax first"):
        FisherOperator(case.model, lambda m, b: F.nll_loss(m(b[0]), b[1]), data=case.data)
    with pytest.raises(ObjectiveError, match="targets of a loss depend"):
        FisherOperator(case.model, lambda m, b: F.mse_loss(m(b[0]), 0.5 * m(b[0] + 1.0)), data=case.data)


def test_graphs_of_some_blocks_give_the_same_products() -> None:
    case = cnn()
    kept, built = (
        FisherOperator(case.model, case.loss, "parameter", data=case.data, precision="fp64", microbatch=2)
        for _ in range(2)
    )
    built.scheduler._keep = False
    name = next(iter(kept.numel))
    vectors = {name: torch.randn(2, kept.numel[name], dtype=torch.float64)}
    torch.testing.assert_close(built.matmat(vectors)[name], kept.matmat(vectors)[name], rtol=1e-12, atol=1e-15)
