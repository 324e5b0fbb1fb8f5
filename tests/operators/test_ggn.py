"""Gauss-Newton products against dense float64 matrices, and the rest of the Hessian against the difference."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gauss_newton_oracle import dense_gauss_newton
from problems import Case, cnn, dense_hessian, gpt, mlp
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import SecondDerivativeError
from hvp_engine.operators.ggn import GaussNewtonOperator, ResidualOperator
from hvp_engine.ops.head.curvature import HeadCurvature
from hvp_engine.scheduling import policy

TOLERANCE = {"fp32": 2e-5, "fp64": 1e-12, "tf32": 2e-5, "bf16": 0.15}


def summed(logits: Tensor, batch: Any) -> tuple[Tensor, float]:
    """Cross-entropy of logits (..., classes) and the number of targets, written out."""
    targets = batch[1]
    kept = targets != he.losses.IGNORE
    chosen = logits[kept].log_softmax(-1).gather(1, targets[kept][:, None])
    return -chosen.sum(), float(kept.sum())


def dense(case: Case, names: list[str] | None = None) -> Tensor:
    return dense_gauss_newton(case.model, lambda m, b: m(b[0]), summed, case.data, names)


@functools.cache
def both_of(make: Callable[[], Case]) -> tuple[Tensor, Tensor]:
    """The whole Gauss-Newton matrix of a case and the whole Hessian."""
    return dense(make()), dense_hessian(make())


def untied() -> Case:
    """The language model with a head of its own; the other one's is its embedding."""
    case = gpt()
    head = case.model.get_submodule("lm_head")
    assert isinstance(head, nn.Linear)
    head.weight = nn.Parameter(torch.randn(head.weight.shape))
    return case


def random_vectors(operator: Any, count: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(count, n, generator=generator, dtype=torch.float64) for name, n in operator.numel.items()}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("precision", ["fp32", "fp64", "tf32", "bf16"])
@pytest.mark.parametrize("make", [mlp, cnn, gpt, untied])
def test_products_match_the_dense_matrix(make: Callable[[], Case], precision: Any) -> None:
    case = make()
    matrix, _ = both_of(make)
    blocks = {"all of it": ["*"], **{name: [name] for name, _ in case.model.named_parameters()}}
    operator = GaussNewtonOperator(case.model, case.loss, blocks, data=case.data, precision=precision, microbatch=2)
    vectors = random_vectors(operator)
    products = operator.matmat(vectors)
    assert relative(products["all of it"], vectors["all of it"] @ matrix) <= TOLERANCE[precision]
    where, scale = 0, float(torch.linalg.matrix_norm(matrix, 2))
    for name, parameter in case.model.named_parameters():
        part = slice(where, where := where + parameter.numel())
        wanted = vectors[name] @ matrix[part, part]
        # A block whose curvature vanishes in exact arithmetic has only rounding to be relative to.
        floor = 1e-3 * scale * float(vectors[name].norm())
        error = float((products[name].double() - wanted).norm())
        assert error <= TOLERANCE[precision] * max(float(wanted.norm()), floor), name


@pytest.mark.parametrize("make", [mlp, cnn, gpt, untied])
def test_the_residual_is_the_hessian_less_the_gauss_newton_matrix(make: Callable[[], Case]) -> None:
    case = make()
    matrix, hessian = both_of(make)
    wanted = hessian - matrix
    operator = ResidualOperator(case.model, case.loss, data=case.data, precision="fp64")
    vectors = random_vectors(operator)
    assert relative(operator.matmat(vectors)["full"], vectors["full"] @ wanted) <= 1e-11


@pytest.mark.parametrize("kind", [GaussNewtonOperator, ResidualOperator])
@pytest.mark.parametrize("make", [mlp, cnn, gpt, untied])
def test_several_vectors_in_one_pass_have_the_products_that_they_have_alone(
    make: Callable[[], Case], kind: type[GaussNewtonOperator]
) -> None:
    case = make()
    operator = kind(case.model, case.loss, {"all": ["*"], "last": ["*weight"]}, data=case.data, precision="fp64")
    vectors = random_vectors(operator, 6)
    operator.scheduler.plan.streams_per_pass = 6
    together = operator.matmat(vectors)
    assert operator.scheduler.plan.single_passes is None
    operator.scheduler.plan.streams_per_pass = 1
    alone = operator.matmat(vectors)
    for name in vectors:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-10, atol=1e-12)


def test_a_linear_model_with_a_convex_loss_has_no_residual() -> None:
    model = nn.Linear(4, 3)
    data = [(torch.randn(n, 4), torch.randint(0, 3, (n,))) for n in (5, 2)]
    case = Case(model, he.losses.classification, data)
    whole = torch.eye(15, dtype=torch.float64)
    of = [
        kind(model, case.loss, data=data, precision="fp64").matmat({"full": whole})["full"]
        for kind in (he.HessianOperator, GaussNewtonOperator, ResidualOperator)
    ]
    torch.testing.assert_close(of[1], dense_hessian(case), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(of[1], of[0], rtol=1e-12, atol=1e-14)
    assert not of[2].any()


@pytest.mark.parametrize(
    ("make", "chosen"), [(mlp, "0.*"), (gpt, "layers.1.attn.wv.weight"), (untied, "layers.0.c_proj.weight")]
)
def test_the_gauss_newton_matrix_is_symmetric_without_negative_eigenvalues(
    make: Callable[[], Case], chosen: str
) -> None:
    case, matrices = make(), []
    for kind in (GaussNewtonOperator, he.HessianOperator):
        operator = kind(case.model, case.loss, {"some": [chosen]}, data=case.data, precision="fp64")
        matrices.append(operator.matmat({"some": torch.eye(operator.numel["some"])})["some"])
    matrix, hessian = matrices
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-10, atol=1e-13)
    values = torch.linalg.eigvalsh(matrix)
    assert values[-1] > 0
    assert values[0] >= -1e-13 * values[-1]
    assert torch.linalg.eigvalsh(hessian)[0] < -1e-3 * values[-1]


def test_slices_of_tensors_are_blocks() -> None:
    case = gpt()
    weight = "layers.0.attn.wq.weight"
    matrix = dense(case, [weight]).reshape(8, 8, 8, 8)
    blocks = [he.Block("rows", [(weight, slice(2, 6))]), he.Block("corner", [(weight, (slice(0, 4, 2), slice(1, 5)))])]
    wanted = {"rows": matrix[2:6, :, 2:6, :].reshape(32, 32), "corner": matrix[0:4:2, 1:5, 0:4:2, 1:5].reshape(8, 8)}
    operator = GaussNewtonOperator(case.model, case.loss, blocks, data=case.data, precision="fp64")
    vectors = random_vectors(operator)
    for name, found in operator.matmat(vectors).items():
        assert relative(found, vectors[name] @ wanted[name]) <= 1e-12, name


def test_the_heads_curvature_serves_blocks_without_the_heads_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BALANCE", {"memory": 0.0, "disk": 0.0})  # it pays at the size of a test, too
    used: list[int] = []
    matvec = HeadCurvature.matvec

    def counted(self: HeadCurvature, *args: Any) -> Tensor:
        used.append(1)
        return matvec(self, *args)

    case = gpt()
    blocks = {name: [name] for name, _ in case.model.named_parameters()}
    operator = GaussNewtonOperator(case.model, case.loss, blocks, data=case.data, precision="fp64")
    vectors = random_vectors(operator)
    before = operator.matmat(vectors)
    operator.form_head_curvature(dict.fromkeys(blocks, 10**6), progress=False)
    assert "in memory" in (operator.head_curvature or "")
    monkeypatch.setattr(HeadCurvature, "matvec", counted)
    after = operator.matmat({"wte.weight": vectors["wte.weight"]})
    assert not used
    after |= operator.matmat({name: vectors[name] for name in vectors if name != "wte.weight"})
    assert used
    for name, found in after.items():
        torch.testing.assert_close(found, before[name], rtol=1e-9, atol=1e-12)


def test_a_graph_takes_no_more_memory_than_the_hessians() -> None:
    for case in (mlp(), gpt(), untied()):
        sizes = [
            kind(case.model, case.loss, "parameter", data=case.data).scheduler.plan.graph_bytes
            for kind in (he.HessianOperator, GaussNewtonOperator, ResidualOperator)
        ]
        assert max(sizes) <= 1.05 * sizes[0]


@pytest.mark.parametrize("name", ["ggn", "residual"])
def test_spectra_of_both_matrices_are_those_of_the_dense_ones(name: str) -> None:
    case = mlp()
    matrix, hessian = both_of(mlp)
    matrix = matrix if name == "ggn" else hessian - matrix
    size = len(matrix)
    spectrum = he.slq(
        case.model, case.loss, data=case.data, steps=size, probes=2, precision="fp64", operator=name, progress=False
    )["full"]
    values = torch.linalg.eigvalsh(matrix)
    assert abs(spectrum.extremes()[1] - float(values[-1])) <= 1e-9


def test_the_check_holds_the_passes_against_differences_of_the_gradient() -> None:
    case = gpt()
    for kind in (GaussNewtonOperator, ResidualOperator):
        operator = kind(case.model, case.loss, "parameter", data=case.data)
        measured = operator.verify(dict.fromkeys(operator.blocks, 10))
        assert measured.dtype == "float64"
        assert measured.asymmetry < 1e-10
        assert measured.finite_difference < 1e-5
        assert 0 < measured.noise < 1e-4


class TurnedBack(torch.autograd.Function):
    """Twice its argument, whose derivative has a derivative of the wrong sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Turned.apply(grad)  # type: ignore[no-any-return, no-untyped-call]


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return 2.0 * grad

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -2.0 * grad


@pytest.mark.parametrize("operator", ["ggn", "residual"])
def test_a_wrong_jacobian_is_refused_before_the_work(operator: str) -> None:
    case = mlp()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(model, nn.Sequential)
        return F.cross_entropy(model[2:](TurnedBack.apply(model[:2](batch[0]))), batch[1])  # type: ignore[no-untyped-call]

    arguments: dict[str, Any] = {"data": case.data, "steps": 2, "probes": 1, "operator": operator, "progress": False}
    with pytest.raises(SecondDerivativeError, match=r"wrong without an error message: asymmetry .*TurnedBack"):
        he.slq(case.model, loss, **arguments)
    assert he.slq(case.model, loss, check=False, **arguments).manifest["verification"] is None


def test_a_frozen_body_leaves_the_heads_own_matrix() -> None:
    case = untied()
    names = [name for name, _ in case.model.named_parameters() if "lm_head" in name]
    model = copy.deepcopy(case.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    operator = GaussNewtonOperator(model, case.loss, data=case.data, precision="fp64")
    vectors = random_vectors(operator)
    assert relative(operator.matmat(vectors)["full"], vectors["full"] @ dense(case, names)) <= 1e-12
    residual = ResidualOperator(model, case.loss, data=case.data, precision="fp64").matmat(vectors)["full"]
    assert not residual.any()


def test_class_weights_and_smoothing_enter_through_the_fused_head() -> None:
    case = gpt()
    weight = torch.linspace(0.2, 2.0, 13)
    options: dict[str, Any] = {"label_smoothing": 0.1, "reduction": "sum"}

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        return of_logits(model(batch[0]), batch)

    def of_logits(logits: Tensor, batch: Any) -> tuple[Tensor, float]:
        flat, targets = logits.flatten(0, 1), batch[1].flatten()
        return F.cross_entropy(flat, targets, weight.to(logits.dtype), **options), float(targets.numel())

    operator = GaussNewtonOperator(case.model, loss, data=case.data, precision="fp64")
    assert operator.head is not None
    vectors = random_vectors(operator)
    matrix = dense_gauss_newton(case.model, lambda m, b: m(b[0]), of_logits, case.data)
    assert relative(operator.matmat(vectors)["full"], vectors["full"] @ matrix) <= 1e-11
