"""Compiled products are the products of backward passes, on every model, and give way where they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import CASES, Case, dense_hessian
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.operators.compiled.replay import Replay
from hvp_engine.operators.registry import OPERATORS

SOME = 7  # products, more than are needed to compile


def replays(operator: Any) -> list[Replay | None]:
    """Return what the kept graphs of an operator compiled."""
    graphs = operator.scheduler._kept.values()
    return [replay for graph in graphs for replay in graph._compiled._made.values()]


def products(operator: Any, vectors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [operator.matmat(vectors) for _ in range(SOME)]


def drawn(operator: Any, count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        name: torch.randn(count, n, generator=generator, dtype=operator.dtype) for name, n in operator.numel.items()
    }


class Gated(nn.Module):
    """A recurrent layer, a table, both kinds of normalisation, an inner product of tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.norm, self.scale = nn.LayerNorm(6), nn.RMSNorm(6)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens to logits."""
        hidden = self.norm(self.recurrent(self.table(tokens))[0])
        return F.silu(self.scale(hidden)) @ self.table.weight.t()


def gated() -> Case:
    torch.manual_seed(4)
    tokens = torch.randint(0, 11, (3, 5))
    return Case(
        Gated(), lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten()), [(tokens, tokens.flip(1))]
    )


def normalised() -> Case:
    """Group normalisation, whose backward gives its sums other shapes in place."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    return Case(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(torch.randn(3, 2, 2, 2), torch.arange(3))])


MODELS: dict[str, Callable[[], Case]] = {**CASES, "gated": gated, "normalised": normalised}


@pytest.mark.parametrize("blocks", [None, "parameter"])
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("model", MODELS)
def test_products_are_those_of_backward_passes(model: str, precision: Any, count: int, blocks: Any) -> None:
    case = MODELS[model]()
    operator = he.HessianOperator(case.model, case.loss, blocks, data=case.data, precision=precision)
    first, *_, last = products(operator, vectors := drawn(operator, count))
    assert operator.uncompiled is None and all(replay is not None for replay in replays(operator))
    assert len(replays(operator)) == len(case.data) * len(vectors)
    for name, product in first.items():
        error = (last[name] - product).norm() / product.norm().clamp_min(1e-30)
        assert error < (1e-12 if precision == "fp64" else 2e-6), name


@pytest.mark.parametrize("matrix", sorted(OPERATORS))
@pytest.mark.parametrize("count", [1, 6])
def test_every_matrix_is_compiled(matrix: str, count: int) -> None:
    case = CASES["mlp"]()
    operator = OPERATORS[matrix](case.model, case.loss, data=case.data, precision="fp64")
    first, *_, last = products(operator, drawn(operator, count))
    assert operator.uncompiled is None and replays(operator) and None not in replays(operator)
    torch.testing.assert_close(last["full"], first["full"], rtol=1e-10, atol=1e-12)


def test_the_compiled_hessian_is_the_dense_one() -> None:
    case = CASES["gpt"]()
    operator = he.HessianOperator(case.model, case.loss, data=case.data, precision="fp64")
    n = operator.numel["full"]
    rows = torch.cat([operator.matmat({"full": unit})["full"] for unit in torch.eye(n, dtype=torch.float64).split(16)])
    assert replays(operator)
    torch.testing.assert_close(rows, dense_hessian(case), rtol=1e-8, atol=1e-10)


def test_what_depends_on_the_primal_alone_is_not_computed_again() -> None:
    case = CASES["mlp"]()
    operator = he.HessianOperator(case.model, case.loss, data=case.data[:1])
    products(operator, drawn(operator, 1))
    (replay,) = replays(operator)
    assert replay is not None and replay.calls < 30  # a backward pass dispatches over a hundred


def test_a_product_belongs_to_the_parameters_as_they_are() -> None:
    case = CASES["mlp"]()
    operator = he.HessianOperator(case.model, case.loss, data=case.data)
    vectors = drawn(operator, 1)
    products(operator, vectors)
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(1.5)
    after = products(operator, vectors)[-1]["full"]
    fresh = he.HessianOperator(case.model, case.loss, data=case.data).matmat(vectors)["full"]
    torch.testing.assert_close(after, fresh, rtol=1e-4, atol=1e-6)


def test_a_constant_of_the_loss_that_is_overwritten_is_noticed() -> None:
    case = CASES["mlp"]()
    scale = torch.ones(3)
    operator = he.HessianOperator(
        case.model, lambda m, b: ((m(b[0]) * scale).square() ** 2).mean(), data=[case.data[0]]
    )
    vectors = drawn(operator, 1)
    products(operator, vectors)
    assert replays(operator) and None not in replays(operator)
    scale.mul_(2.0)
    with pytest.raises(he.HvpEngineError, match="in place"):
        operator.matmat(vectors)


class Branching(torch.autograd.Function):
    """x to the fourth, whose second backward looks at what it gets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**4

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return BranchingBackward.apply(g, x)


class BranchingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return 4 * g * x**3

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        if float(u.sum()) > 0:
            return 4 * u * x**3, 12 * u * g * x**2
        return u * x**3 * 4, u * g * x**2 * 12


def test_a_pass_that_looks_at_the_vector_is_not_compiled() -> None:
    case = CASES["mlp"]()
    operator = he.HessianOperator(case.model, lambda m, b: Branching.apply(m(b[0])).mean(), data=[case.data[0]])
    first, *_, last = products(operator, drawn(operator, 1))
    assert replays(operator) == [None]
    assert operator.uncompiled is not None and "depends on the vector's values" in operator.uncompiled
    assert torch.equal(first["full"], last["full"])


class Unseen(torch.autograd.Function):
    """The identity, whose backward leaves PyTorch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return UnseenBackward.apply(g)


class UnseenBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor) -> Tensor:
        return g.clone()

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Tensor:
        return torch.from_numpy(u.numpy().copy())


def test_a_product_that_is_wrong_is_not_used_and_said_to_be() -> None:
    case = CASES["mlp"]()
    operator = he.HessianOperator(case.model, lambda m, b: (Unseen.apply(m(b[0])) ** 4).mean(), data=[case.data[0]])
    vectors = drawn(operator, 1)
    first = operator.matmat(vectors)["full"]
    with pytest.warns(RuntimeWarning, match="is not used; products are right"):
        last = products(operator, vectors)[-1]["full"]
    assert replays(operator) == [None]
    assert torch.equal(first, last)


def test_a_job_compiles_from_its_first_product_and_few_products_are_not_compiled() -> None:
    case = CASES["mlp"]()
    operator = he.HessianOperator(case.model, case.loss, data=case.data)
    operator.compiler.expected = {"full": 100}
    operator.matmat(drawn(operator, 1))
    assert replays(operator) and None not in replays(operator)
    operator = he.HessianOperator(case.model, case.loss, data=case.data)
    operator.compiler.expected = {"full": 3}
    products(operator, drawn(operator, 1))
    assert replays(operator) == []


def test_autocast_of_the_caller_does_not_reach_a_replay() -> None:
    case = CASES["mlp"]()
    operator = he.HessianOperator(case.model, case.loss, data=case.data)
    vectors = drawn(operator, 1)
    expected = products(operator, vectors)[-1]["full"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operator.matmat(vectors)["full"], expected)


def test_a_job_shows_what_it_compiles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("hvp_engine.system.progress._LINE_EVERY", 0.0)
    case = CASES["mlp"]()
    he.slq(case.model, case.loss, "parameter", data=case.data, steps=8, probes=5, check=False, progress=True)
    shown = [line for line in capsys.readouterr().err.splitlines() if "compiling products with block '" in line]
    assert {line.partition("block ")[2] for line in shown} >= {
        repr(name) for name, parameter in case.model.named_parameters() if parameter.numel() >= 8
    }
