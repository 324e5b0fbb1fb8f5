"""Backward passes that fail, whatever they raise, and gradients that are stored in unusual ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import Case, dense_hessian, mlp
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import BackwardError, HvpEngineError, NotFiniteError, OutOfMemoryError, SecondDerivativeError
from hvp_engine.operators.autograd_nodes import name_of, operation_of
from hvp_engine.operators.gradient_graph import GradientGraph

BATCH = (torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)


class Custom(Exception):
    """An exception of a user's package, whose text cannot even be read."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def function_with(backward: Callable[[Any, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            ctx.name, ctx.operation = "sine", 3  # names that users give away freely
            return x.sin()

    Function.backward = staticmethod(backward)
    apply: Callable[[Tensor], Tensor] = Function.apply
    return apply


def refusing(error: BaseException, first: bool = False) -> Callable[[Tensor], Tensor]:
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if first or torch.is_grad_enabled():
            raise error
        return grad * ctx.saved_tensors[0].cos()

    return function_with(backward)


def refusing_at_last(error: BaseException) -> Callable[[Tensor], Tensor]:
    """Raise in the second backward pass, where the graph of the first is followed."""

    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise error
        return grad * ctx.saved_tensors[0].cos()

    return function_with(backward)


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.function = nn.Linear(4, 4), nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(self.function(self.inner(x)))
        return out


def multiply(model: nn.Module, count: int = 1) -> Tensor:
    size = sum(p.numel() for p in model.parameters())
    return he.hvp(model, he.losses.classification, {"full": torch.ones(count, size)}, data=[BATCH])["full"]


ERRORS = [AssertionError("no graph"), ValueError(), TypeError("a\nb"), KeyError("x"), StopIteration(), Custom()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", [refusing, refusing_at_last])
def test_whatever_a_backward_raises_becomes_an_error_with_cause_and_fix(
    where: Callable[[BaseException], Callable[[Tensor], Tensor]], error: BaseException
) -> None:
    model = Net(where(error))
    for count in (1, 7):
        with pytest.raises(BackwardError, match=type(error).__name__) as raised:
            multiply(model, count)
        assert "write its backward with differentiable operations" in str(raised.value)
        assert raised.value.__cause__ is error
    for check in (False, True):
        with pytest.raises(SecondDerivativeError):
            he.slq(model, he.losses.classification, data=[BATCH], steps=2, probes=1, progress=False, check=check)
    report = he.doctor(model, he.losses.classification, data=[BATCH], seconds=1.0)
    assert "backward-fails" in [finding.code for finding in report.findings if finding.severity == "error"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_interrupts_and_lack_of_memory_go_through(error: BaseException) -> None:
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutOfMemoryError
    with pytest.raises(expected):
        multiply(Net(refusing(error)))
    with pytest.raises(expected):
        multiply(Net(refusing_at_last(error)))


def test_a_gradient_that_fails_too_is_explained() -> None:
    with pytest.raises(BackwardError, match="ValueError: not at all"):
        multiply(Net(refusing(ValueError("not at all"), first=True)))


def test_names_that_users_give_to_their_contexts_hide_nothing() -> None:
    function = function_with(lambda ctx, grad: grad * ctx.saved_tensors[0].cos())
    x = torch.ones(2, requires_grad=True)
    out = function(x)  # a node lives as long as its result
    node = out.grad_fn
    assert node is not None and isinstance(node.name, str)
    assert name_of(node) == "FunctionBackward" and operation_of(node).endswith("Function")
    model = Net(function)
    plain = Net(torch.sin)
    wanted = dense_hessian(Case(plain, he.losses.classification, [BATCH]))
    found = multiply(model, 2)
    torch.testing.assert_close(found.double(), torch.ones(2, len(wanted)).double() @ wanted, rtol=1e-4, atol=1e-6)
    assert he.doctor(model, he.losses.classification, data=[BATCH], seconds=1.0).ok


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4, sparse=sparse)
        self.bag = nn.EmbeddingBag(6, 4, mode="sum", sparse=sparse)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        rows = torch.cat([self.table(tokens).flatten(1), self.bag(tokens)], 1)
        logits: Tensor = self.head(torch.tanh(rows))
        return logits


@pytest.mark.parametrize("count", [1, 3, 6])
def test_embeddings_with_sparse_gradients_have_the_products_of_dense_ones(count: int) -> None:
    tokens = torch.randint(0, 6, (9, 2), generator=torch.Generator().manual_seed(1))
    data = [(tokens, torch.arange(9) % 3)]
    size = sum(p.numel() for p in Words(True).parameters())
    vectors = torch.randn(count, size, generator=torch.Generator().manual_seed(2))
    loss = he.losses.classification
    found, wanted = (he.hvp(Words(s), loss, {"full": vectors}, data=data)["full"] for s in (True, False))
    torch.testing.assert_close(found, wanted)


def test_jobs_and_the_doctor_take_sparse_gradients() -> None:
    data = [(torch.tensor([[0, 1], [2, 5], [3, 3]]), torch.tensor([0, 1, 2]))]
    assert he.doctor(Words(True), he.losses.classification, data=data, seconds=2.0).ok
    traces = [
        he.slq(Words(s), he.losses.classification, data=data, steps=4, probes=2, progress=False)["full"].trace().value
        for s in (True, False)
    ]
    assert traces[0] == pytest.approx(traces[1], rel=1e-5)


class SparseRows(torch.autograd.Function):
    """Rows of a table, with a sparse gradient of the user's own."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size = table.shape
        return table[rows]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(rows[None], grad, ctx.size, check_invariants=False), None


@pytest.mark.parametrize("count", [1, 2, 6])
def test_sparse_gradients_of_any_function_come_out_dense(count: int) -> None:
    table = nn.Embedding(5, 2)
    rows = torch.tensor([0, 3, 3])
    vectors = torch.randn(count, 10)
    found, wanted = (
        he.hvp(table, lambda m, f=f: f(m.weight).sin().square().sum(), {"full": vectors})["full"]
        for f in (lambda w: SparseRows.apply(w, rows), lambda w: w[rows])
    )
    torch.testing.assert_close(found, wanted)


class Pairs(nn.Module):
    """Complex weights kept as real pairs, in several layouts, behind a number of odd parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shift = nn.Parameter(torch.randn(1))
        self.pairs, self.flat = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(6))
        self.scale = nn.Parameter(torch.randn(3))
        self.wide = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.view_as_complex(self.pairs) + torch.view_as_complex(self.flat.view(3, 2)).exp()
        factor = factor * torch.view_as_complex(self.wide.unflatten(1, (2, 2))).sum(1) * self.scale
        return torch.fft.irfft(torch.fft.rfft(x) * factor, n=4) + self.shift


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_weights_that_are_pairs_of_a_complex_number_take_vectors_at_any_place(count: int, precision: str) -> None:
    model = Pairs()
    x, y = BATCH
    names = ("shift", "pairs", "flat", "scale", "wide")
    vectors = torch.randn(count, 28, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(*parameters: Tensor) -> Tensor:
        out = torch.func.functional_call(model.double(), dict(zip(names, parameters, strict=True)), (x.double(),))
        return F.cross_entropy(out, y)

    given = tuple(p.detach().double() for p in model.parameters())
    rows = torch.autograd.functional.hessian(value, given)
    hessian = torch.cat(
        [torch.cat([b.reshape(p.numel(), -1) for b in row], 1) for row, p in zip(rows, given, strict=True)]
    )
    model.float()
    found = he.hvp(model, he.losses.classification, {"full": vectors}, data=[BATCH], precision=precision)["full"]
    tolerance = 1e-4 if precision == "fp32" else 1e-10
    torch.testing.assert_close(found.double(), vectors @ hessian, rtol=tolerance, atol=tolerance)


def test_vectors_are_copied_only_where_a_graph_reads_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[bool] = []
    original = GradientGraph._viewable

    def watched(graph: GradientGraph, cotangent: Tensor) -> Tensor:
        seen = original(graph, cotangent)
        copied.append(seen is not cotangent)
        return seen

    monkeypatch.setattr(GradientGraph, "_viewable", watched)
    case = mlp()
    size = sum(p.numel() for p in case.model.parameters())
    he.hvp(case.model, case.loss, {"full": torch.ones(2, size)}, data=case.data)
    assert copied and not any(copied)
    copied.clear()
    multiplied = he.hvp(Pairs(), he.losses.classification, {"full": torch.ones(1, 28)}, data=[BATCH])["full"]
    assert any(copied) and not all(copied) and multiplied.norm() > 0


class Distance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.points, self.rest = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))


def kernel(model: Distance) -> Tensor:
    return torch.exp(-((model.points[0] - model.points[1]).norm() ** 2)) + model.rest.square().sum()


def test_a_product_that_is_not_finite_is_an_error_that_names_its_parameters() -> None:
    for count in (1, 2):
        with pytest.raises(NotFiniteError, match=r"block 'full', in points, is not finite.*add a small epsilon"):
            he.hvp(Distance(), kernel, {"full": torch.ones(count, 7)})
    with pytest.raises(NotFiniteError, match="points"):
        he.HessianOperator(Distance(), kernel, "parameter").matmat(
            {n: torch.ones(1, s) for n, s in (("points", 4), ("rest", 3))}
        )
    assert he.hvp(Distance(), kernel, {"rest": torch.ones(1, 3)}, "parameter")["rest"].tolist() == [[2.0, 2.0, 2.0]]
    with pytest.raises(NotFiniteError, match=r"probe 0\) is not finite at step 0: "):
        he.slq(Distance(), kernel, steps=2, probes=1, check=False, progress=False)
    with pytest.raises(HvpEngineError, match="not finite"):
        he.slq(Distance(), kernel, steps=2, probes=1, progress=False)
    assert "curvature-not-finite" in [f.code for f in he.doctor(Distance(), kernel, seconds=1.0).findings]


def test_a_small_epsilon_does_make_it_finite() -> None:
    def mended(model: Distance) -> Tensor:
        difference = model.points[0] - model.points[1]
        return torch.exp(-((difference.square().sum() + 1e-12).sqrt() ** 2)) + model.rest.square().sum()

    assert he.hvp(Distance(), mended, {"full": torch.ones(1, 7)})["full"].isfinite().all()
