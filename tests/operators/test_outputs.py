"""Which losses are recognised as convex in an output, whatever they are written with, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gauss_newton_oracle import dense_gauss_newton
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import ObjectiveError
from hvp_engine.operators.ggn import GaussNewtonOperator, ResidualOperator

WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1])
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 3, 1, -100, 2, 2])
KEPT = torch.tensor([0, 3, 1, 1, 2, 2])
SOFT = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
REAL = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4))


def as_(target: Tensor, like: Tensor) -> Tensor:
    return target.to(like.dtype)


def in_place(z: Tensor) -> Tensor:
    total = F.cross_entropy(z, Y, reduction="sum")
    total *= 0.25
    total += F.mse_loss(z, as_(REAL, z)) * 3
    return total


def per_token(z: Tensor) -> Tensor:
    mask = (KEPT > 0).to(z.dtype)
    return (F.cross_entropy(z, KEPT, reduction="none") * mask).sum() / mask.sum()


def last_axis(z: Tensor) -> Tensor:
    return F.cross_entropy(z.view(2, 3, 4).permute(0, 2, 1), Y.view(2, 3), label_smoothing=0.1)


def distilled(z: Tensor) -> Tensor:
    return F.kl_div(z.log_softmax(1), as_(SOFT, z), reduction="batchmean") * 4.0


def written_out(z: Tensor) -> Tensor:
    return (z.logsumexp(1) - z.gather(1, KEPT[:, None]).squeeze(1)).mean()


CONVEX: dict[str, Callable[[Tensor], Tensor]] = {
    "class indices": lambda z: F.cross_entropy(z, Y),
    "no ignored one, summed": lambda z: F.cross_entropy(z, KEPT, reduction="sum"),
    "weights and smoothing": lambda z: F.cross_entropy(z, Y, as_(WEIGHT, z), label_smoothing=0.2),
    "another ignored index": lambda z: F.cross_entropy(z, KEPT, ignore_index=2),
    "class probabilities": lambda z: F.cross_entropy(z, as_(SOFT, z)),
    "probabilities, weights and smoothing": lambda z: F.cross_entropy(
        z, as_(SOFT, z), as_(WEIGHT, z), label_smoothing=0.1
    ),
    "per token": per_token,
    "last axis": last_axis,
    "mse": lambda z: F.mse_loss(z, as_(REAL, z)),
    "mse summed": lambda z: F.mse_loss(z, as_(REAL, z), reduction="sum"),
    "mse by row": lambda z: (F.mse_loss(z, as_(REAL, z), reduction="none").mean(1) * torch.arange(6).to(z)).sum(),
    "written-out mse": lambda z: ((z - as_(REAL, z)) ** 2).mean(),
    "mse by pow": lambda z: 0.5 * (as_(REAL, z) - z).flatten().pow(2).sum(),
    "mse by square": lambda z: (z[:, 0] - as_(REAL, z)[:, 0]).square().mean(),
    "mse by product": lambda z: torch.mul(d := z - as_(REAL, z), d).sum(),
    "bce": lambda z: F.binary_cross_entropy_with_logits(z, as_(SOFT, z), pos_weight=as_(WEIGHT, z)),
    "nll": lambda z: F.nll_loss(F.log_softmax(z, 1), Y, as_(WEIGHT, z)),
    "nll of a module": lambda z: nn.NLLLoss()(nn.LogSoftmax(1)(z), Y),
    "kl": distilled,
    "written-out cross-entropy": written_out,
    "written-out log-softmax": lambda z: -(z - z.logsumexp(1, keepdim=True)).gather(1, KEPT[:, None]).mean(),
    "a linear term of the output": lambda z: F.mse_loss(z, as_(REAL, z)) - 0.3 * z[:, 1].sum(),
    "huber": lambda z: F.huber_loss(z, as_(REAL, z), delta=0.7),
    "logistic": lambda z: -F.logsigmoid(z[:, 0] - z[:, 1]).mean(),
    "softplus": lambda z: F.softplus(-z).mean(),
    "several": lambda z: 0.3 * F.cross_entropy(z, Y) + torch.stack([F.mse_loss(z, as_(REAL, z)), z.sum() * 0]).sum(),
    "in place": in_place,
}


def convex(name: str) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, batch: CONVEX[name](model(batch[0]))


def products(kind: type[he.HessianOperator], loss: Any, data: Any, vectors: Tensor, **options: Any) -> Tensor:
    return kind(network(), loss, data=data, precision="fp64", **options).matmat({"full": vectors})["full"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CONVEX)
def test_a_convex_loss_is_recognised_however_it_is_written(name: str) -> None:
    data = [(X, Y)]
    matrix = dense_gauss_newton(network(), lambda m, b: m(b[0]), lambda z, _: (CONVEX[name](z), 1.0), data)
    whole = torch.eye(len(matrix), dtype=torch.float64)
    found = products(GaussNewtonOperator, convex(name), data, whole)
    assert float((found - matrix).norm() / matrix.norm()) <= 1e-12
    assert float(torch.linalg.eigvalsh(found)[0]) >= -1e-13
    rest = products(he.HessianOperator, convex(name), data, whole) - found
    torch.testing.assert_close(products(ResidualOperator, convex(name), data, whole), rest, rtol=1e-9, atol=1e-13)


def test_a_target_that_depends_on_the_parameters_is_an_output_too() -> None:
    def outputs(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, nn.Sequential)
        return torch.cat([model(batch[0]), model[0](batch[0] ** 2)], 1)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        z = outputs(model, batch)
        return F.mse_loss(z[:, :4], z[:, 4:])

    def of_outputs(z: Tensor, _: Any) -> tuple[Tensor, float]:
        return F.mse_loss(z[:, :4], z[:, 4:]), 1.0

    matrix = dense_gauss_newton(network(), outputs, of_outputs, [(X, Y)])
    found = products(GaussNewtonOperator, loss, [(X, Y)], torch.eye(len(matrix), dtype=torch.float64))
    assert float((found - matrix).norm() / matrix.norm()) <= 1e-12


def test_a_parameter_that_is_subtracted_from_an_output_is_no_weight_decay() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, nn.Sequential)
        return ((model(batch[0]) - model[0].bias) ** 2).sum()

    matrix = dense_gauss_newton(
        network(), lambda m, b: m(b[0]) - m[0].bias, lambda z, _: (z.square().sum(), 6.0), [(X, Y)]
    )
    found = products(GaussNewtonOperator, loss, [(X, Y)], torch.eye(len(matrix), dtype=torch.float64))
    assert float((found / 6 - matrix).norm() / matrix.norm()) <= 1e-12


def test_losses_of_an_output_and_of_a_layer_below_it_are_summed() -> None:
    def outputs(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, nn.Sequential)
        hidden = model[0](batch[0])
        return torch.cat([hidden, model[2](hidden.tanh())], 1)

    def of_outputs(z: Tensor, _: Any) -> tuple[Tensor, float]:
        return F.mse_loss(z[:, :4], as_(REAL, z)) + 2.0 * F.cross_entropy(z[:, 4:], Y), 1.0

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, nn.Sequential)
        hidden = model[0](batch[0])
        below, above = F.mse_loss(hidden, as_(REAL, hidden)), F.cross_entropy(model[2](hidden.tanh()), Y)
        return below + 2.0 * above

    matrix = dense_gauss_newton(network(), outputs, of_outputs, [(X, Y)])
    found = products(GaussNewtonOperator, loss, [(X, Y)], torch.eye(len(matrix), dtype=torch.float64))
    assert float((found - matrix).norm() / matrix.norm()) <= 1e-12


def decayed(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), Y) + 0.01 * sum((p**2).sum() for p in model.parameters())


def towards(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), Y) + sum(((p - 1.0) ** 2).sum() for p in model.parameters())


def z_loss(model: nn.Module, batch: Any) -> Tensor:
    z = model(batch[0])
    return F.cross_entropy(z, Y) + 1e-4 * (z.logsumexp(1) ** 2).mean()


def perplexity(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), Y).exp()


def product_of_losses(model: nn.Module, batch: Any) -> Tensor:
    z = model(batch[0])
    return F.cross_entropy(z, Y) * F.mse_loss(z, as_(REAL, z))


def self_weighted(model: nn.Module, batch: Any) -> Tensor:
    z = model(batch[0])
    losses = F.cross_entropy(z, KEPT, reduction="none")
    return (losses * losses.exp()).mean()


def probabilities(model: nn.Module, batch: Any) -> Tensor:
    return -model(batch[0]).softmax(1).gather(1, KEPT[:, None]).log().mean()


def compared_with_itself(model: nn.Module, batch: Any) -> Tensor:
    z = model(batch[0])
    return F.mse_loss(z, z.tanh())


def fed_back(model: nn.Module, batch: Any) -> Tensor:
    first = F.cross_entropy(model(batch[0]), Y)
    return first + F.cross_entropy(model(batch[0] * first), Y)


REFUSED: dict[str, tuple[Callable[[nn.Module, Any], Tensor], str]] = {
    "weight decay": (
        decayed,
        r"found: (CrossEntropy|LogSoftmax)\), but parameter '2.bias' also enters this one through Pow\.",
    ),
    "decay towards a point": (towards, r"parameter '2.bias' also enters this one through Pow\."),
    "decay by absolute values": (
        lambda model, batch: convex("mse")(model, batch) + model[0].bias.sum(),
        r"found: MseLoss\), but parameter '0.bias' also enters this one itself\.",
    ),
    "z-loss": (z_loss, r"found: (CrossEntropy|LogSoftmax)\), but parameter .* also enters this one through Pow\."),
    "perplexity": (perplexity, r"parameter .* enters this one through Exp\."),
    "product": (product_of_losses, r"parameter .* enters this one through Mul\."),
    "weights of the loss itself": (self_weighted, r"through Mul\."),
    "softmax": (probabilities, r"through Log\."),
    "no loss": (lambda model, batch: model(batch[0]).sum(), r"through Addmm\."),
    "compared with itself": (compared_with_itself, r"compares an output with what is computed from it"),
    "fed back": (fed_back, r"enters the computation of another loss's output"),
    "negative weight": (lambda model, batch: -F.mse_loss(model(batch[0]), REAL), r"not convex .* weight -[0-9.]+,"),
    "unlikelihood": (
        lambda model, batch: (F.cross_entropy(model(batch[0]), KEPT, reduction="none") * (KEPT - 1.0)).sum(),
        r"not convex in the model's output: values of _?[A-Za-z]* enter it with the weight -?6, of the wrong sign",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("operator", ["ggn", "residual"])
def test_a_total_that_adds_up_no_convex_losses_is_refused_in_words(name: str, operator: str) -> None:
    loss, words = REFUSED[name]
    with pytest.raises(ObjectiveError, match=words) as error:
        he.slq(network(), loss, data=[(X, Y)], steps=2, probes=1, operator=operator, progress=False)
    assert "F.cross_entropy" in str(error.value) or "convex losses" in str(error.value)
    assert 'operator="hessian"' in str(error.value)
    assert he.slq(network(), loss, data=[(X, Y)], steps=2, probes=1, progress=False)["full"].trace() is not None


def test_another_way_to_parameters_of_no_block_is_no_matter() -> None:
    vectors = torch.eye(20, dtype=torch.float64)
    blocks = {"full": ["2.*"]}

    def first_decayed(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, nn.Sequential)
        return F.cross_entropy(model(batch[0]), Y) + model[0].weight.square().sum() * model[0].bias.exp().sum()

    found = products(GaussNewtonOperator, first_decayed, [(X, Y)], vectors, blocks=blocks)
    assert torch.equal(found, products(GaussNewtonOperator, convex("class indices"), [(X, Y)], vectors, blocks=blocks))


def test_every_ready_loss_has_its_gauss_newton_matrix() -> None:
    torch.manual_seed(0)
    language = nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, 7))
    tokens = torch.randint(0, 7, (3, 5))
    probabilities = torch.randn(6, 4).softmax(1)
    cases: list[tuple[nn.Module, Any, Any]] = [
        (language, he.losses.causal_lm, tokens),
        (language, he.losses.masked_lm, (tokens, tokens.where(tokens > 2, -100))),
        (network(), he.losses.classification, (X, Y)),
        (network(), he.losses.classification, (X, probabilities)),
    ]
    for model, loss, batch in cases:
        size = sum(p.numel() for p in model.parameters())
        whole = {"full": torch.eye(size, dtype=torch.float64)}
        of = [
            kind(model, loss, data=[batch], precision="fp64").matmat(whole)["full"]
            for kind in (he.HessianOperator, GaussNewtonOperator, ResidualOperator)
        ]
        torch.testing.assert_close(of[0], of[1] + of[2], rtol=1e-9, atol=1e-12)
        assert float(torch.linalg.eigvalsh(of[1])[0]) >= -1e-12
        assert float(torch.linalg.eigvalsh(of[0])[0]) < -1e-6
