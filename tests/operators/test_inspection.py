"""What the graphs of micro-batches tell before the first product: known wrong derivatives, custom functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from custom_functions import Once, Sound
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import SecondDerivativeError
from hvp_engine.operators.inspection import GraphInspection

Loss = Callable[[nn.Module, Any], Tensor]


class Frozen(torch.autograd.Function):
    """A cube whose backward does not depend on its input, as far as autograd sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0].detach() ** 2 * grad


class HalfFrozen(torch.autograd.Function):
    """A product of which one factor counts as a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x * x.detach() * grad


class Scaled(torch.autograd.Function):
    """Linear: its backward depends on nothing, and that is right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 3 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad


@torch.library.custom_op("hvp_engine_tests::cube", mutates_args=())
def registered(x: Tensor) -> Tensor:
    return x**3


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


registered.register_autograd(
    lambda ctx, grad: 3 * ctx.saved_tensors[0].detach() ** 2 * grad,
    setup_context=_keep,
)


class Routed(nn.Module):
    """Samples with a first feature above 1 go through a function that the others do not see."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        far = x[:, 0] > 1
        y = torch.tanh(self.a(x))
        if far.any():
            y = y.index_put((far.nonzero()[:, 0],), self.function(self.b(x[far])))
        logits: Tensor = self.head(y)
        return logits


def routed_data(batches: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    x, y = torch.randn(24, 4), torch.randint(0, 3, (24,))
    x[:, 0] = -1
    x[20:, 0] = 2  # the last ones only
    return list(zip(x.chunk(batches), y.chunk(batches), strict=True))


def product(model: nn.Module, loss: Loss, data: Any, precision: Any = "fp32") -> Tensor:
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    v = torch.linspace(-1, 1, size)[None]
    return he.hvp(model, loss, {"full": v}, data=data, precision=precision)["full"]


def classification(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("function", [Frozen.apply, HalfFrozen.apply, Once.apply, registered])
def test_a_wrong_function_on_a_rare_path_is_refused_by_every_call(
    function: Callable[[Tensor], Tensor], batches: int
) -> None:
    model, data = Routed(function), routed_data(batches)
    with pytest.raises(SecondDerivativeError):
        product(model, classification, data)
    with pytest.raises(SecondDerivativeError):
        he.slq(model, classification, data=data, steps=3, probes=1, progress=False)
    report = he.doctor(model, classification, data=data, seconds=5)
    assert not report.ok


@pytest.mark.parametrize(
    ("function", "plain"), [(Sound.apply, torch.sin), (Scaled.apply, lambda x: 3 * x)], ids=["sound", "linear"]
)
def test_a_right_function_on_a_rare_path_is_taken(function: Any, plain: Any) -> None:
    data = routed_data(3)
    found, right = product(Routed(function), classification, data), product(Routed(plain), classification, data)
    assert float((found - right).norm() / right.norm()) < 1e-5
    assert he.doctor(Routed(function), classification, data=data, seconds=5).ok


def test_a_function_is_tested_once_per_operator() -> None:
    calls = 0

    def counted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return classification(model, batch)

    model, data = Routed(Sound.apply), routed_data(1)
    operator = he.HessianOperator(model, counted, data=data)
    vectors = {"full": torch.ones(1, operator.numel["full"])}
    operator.matmat(vectors)
    first, calls = calls, 0
    operator.release()
    operator.matmat(vectors)
    assert first > 3 and calls == 1


def test_a_wrong_function_that_float64_does_not_take_is_found_in_the_jobs_arithmetic() -> None:
    def function(x: Tensor) -> Tensor:
        y: Tensor = Frozen.apply(x) if x.dtype == torch.float32 else x**3
        return y

    class Every(Routed):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.function(self.a(x)))
            return logits

    with pytest.raises(SecondDerivativeError, match=r"wrong without an error message.*Frozen"):
        product(Every(function), classification, routed_data(1))
    with pytest.raises(SecondDerivativeError, match="wrong without an error message"):
        he.slq(Every(function), classification, data=routed_data(1), steps=3, probes=1, progress=False)


def test_a_cut_that_float64_does_not_take_is_found_in_the_jobs_arithmetic() -> None:
    def function(x: Tensor) -> Tensor:
        return x.detach() * x**2 if x.dtype == torch.float32 else x**3

    class Every(Routed):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.function(self.a(x)))
            return logits

    with pytest.raises(SecondDerivativeError, match="wrong without an error message"):
        he.slq(Every(function), classification, data=routed_data(1), steps=3, probes=1, progress=False)


class Normalized(nn.Module):
    def __init__(self, dim: int | None, old: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        make = torch.nn.utils.weight_norm if old else torch.nn.utils.parametrizations.weight_norm
        self.first, self.second = make(nn.Linear(4, 5), dim=dim), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(torch.tanh(self.first(x)))
        return logits


def differences(model: nn.Module, loss: Loss, batch: Any) -> Tensor:
    """Central differences of the gradient along the direction of `product`, in float64."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    v = torch.linspace(-1, 1, sum(p.numel() for p in parameters)).double()
    gradients = []
    for step in (1e-6, -1e-6):
        moved = v.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, moved, strict=True):
            parameter.data.add_(piece.view_as(parameter), alpha=step)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss(model, batch), parameters)]))
        for parameter, piece in zip(parameters, moved, strict=True):
            parameter.data.sub_(piece.view_as(parameter), alpha=step)
    return (gradients[0] - gradients[1]) / 2e-6


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_has_a_right_second_derivative(dim: int | None, old: bool) -> None:
    ((x, y),) = routed_data(1)
    model = Normalized(dim, old).double()
    found = product(model, classification, [(x.double(), y)], "fp64")[0]
    right = differences(model, classification, (x.double(), y))
    assert float((found - right).norm() / right.norm()) < 1e-6


def through(function: Callable[[Tensor], Tensor]) -> nn.Module:
    class Every(Routed):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.function(self.a(x)))
            return logits

    return Every(function)


def overlapping(x: Tensor, stride: int = 1) -> Tensor:
    pooled, places = F.max_pool1d(x[None], 2, stride, return_indices=True)
    return F.max_unpool1d(pooled.sin(), places, 2, stride, output_size=(4,))[0]


def interface(x: Tensor) -> Tensor:
    return x @ torch._weight_norm_interface(x[:4], x[:4, :1].exp())[0]


def scattered(x: Tensor) -> Tensor:
    return torch.as_strided_scatter(x, x[:2, :2].sin(), (2, 2), (4, 1))


@pytest.mark.parametrize(
    ("function", "fixed", "name"),
    [
        (overlapping, lambda x: overlapping(x, 2), "max_unpool"),
        (interface, lambda x: x @ (x[:4] * (x[:4, :1].exp() / torch.norm_except_dim(x[:4], 2, 0))), "weight_norm"),
        (scattered, lambda x: x.index_put((torch.tensor([0, 1]),), x[:2].sin()), "as_strided_scatter"),
    ],
    ids=["max_unpool", "weight_norm", "as_strided_scatter"],
)
def test_known_wrong_derivatives_are_refused_by_every_call_and_their_fix_works(
    function: Any, fixed: Any, name: str
) -> None:
    data = routed_data(1)
    for call in (
        lambda: product(through(function), classification, data),
        lambda: he.slq(through(function), classification, data=data, steps=3, probes=1, progress=False),
        lambda: he.slq(through(function), classification, data=data, steps=3, probes=1, progress=False, check=False),
    ):
        with pytest.raises(SecondDerivativeError, match=name):
            call()
    report = he.doctor(through(function), classification, data=data, seconds=5)
    assert any(name in finding.message for finding in report.findings if finding.severity == "error")
    product(through(fixed), classification, data)
    assert he.doctor(through(fixed), classification, data=data, seconds=5).ok


def table(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(6, 4, **options), nn.Flatten(), nn.Tanh(), nn.Linear(8, 3))


def test_scaled_gradients_of_an_embedding_are_refused_wherever_tokens_repeat() -> None:
    tokens = torch.cat([torch.tensor([[0, 1], [2, 3]]), torch.randint(0, 6, (14, 2))])
    data = [(tokens, torch.randint(0, 3, (16,)))]
    model = table(scale_grad_by_freq=True)
    with pytest.raises(SecondDerivativeError, match="scale_grad_by_freq=False"):
        product(model, classification, data)
    with pytest.raises(SecondDerivativeError, match="scale_grad_by_freq=False"):
        he.slq(model, classification, data=data, steps=3, probes=1, progress=False)
    assert not he.doctor(model, classification, data=data, seconds=5).ok
    with pytest.raises(SecondDerivativeError, match="scale_grad_by_freq=False"):
        he.plan(model, classification, data=data)
    product(table(scale_grad_by_freq=False), classification, data)


@pytest.mark.parametrize("normalize", ["layer_norm", "batch_norm", "group_norm"])
def test_third_derivatives_that_pytorch_has_wrong_are_refused(normalize: str) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "layer_norm": lambda x: F.layer_norm(x, (4,)),
        "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
        "group_norm": lambda x: F.group_norm(x, 1),
    }
    x = torch.randn(5, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(functions[normalize](x).pow(3).sum(), x, create_graph=True)
    inspection = GraphInspection()
    if normalize == "group_norm":
        assert not inspection.unknown(0, gradient.pow(2).sum(), ())
        return
    with pytest.raises(SecondDerivativeError, match=rf"{normalize}.* third derivative"):
        inspection.unknown(0, gradient.pow(2).sum(), ())
