"""The test of the second derivative: what is wrong is found, what is sound or cannot be told is let through."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from custom_functions import Frozen, Once
from problems import mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hvp_engine as he
from hvp_engine.errors import BackendError, DeviceError, SecondDerivativeError
from hvp_engine.operators import verification
from hvp_engine.problem import batches
from hvp_engine.problem.objective import Objective

DATA = [(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 1]))]


class Wrapped(nn.Module):
    """Two linear layers with a function in between."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.second(self.function(self.first(inputs)))
        return hidden


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def run(function: Any) -> he.Spectra:
    return he.slq(Wrapped(function), loss, data=DATA, steps=3, probes=1)


class WrongScale(torch.autograd.Function):
    """A gradient that is not the function's: symmetric second derivative, contradicted by differences."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def test_sound_models_pass_with_small_errors() -> None:
    for function in (torch.tanh, F.relu, F.gelu, F.softplus):
        measured = run(function).manifest["verification"]
        assert measured["dtype"] == "float64"
        assert measured["asymmetry"] < 1e-12
        assert measured["finite_difference"] < 1e-5


def test_an_operation_without_second_derivative_is_refused() -> None:
    with pytest.raises(SecondDerivativeError, match="marked once_differentiable"):
        run(Once.apply)


@pytest.mark.parametrize("function", [Frozen, WrongScale])
def test_a_silently_wrong_second_derivative_is_refused(function: Any) -> None:
    with pytest.raises(SecondDerivativeError, match="wrong without an error message"):
        run(function.apply)


def test_the_check_can_be_switched_off() -> None:
    spectra = he.slq(Wrapped(Frozen.apply), loss, data=DATA, steps=3, probes=1, check=False)
    assert spectra.manifest["verification"] is None


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_refused_and_the_other_kind_works() -> None:
    with pytest.raises(he.HvpEngineError, match="use_reentrant=False"):
        run(lambda x: checkpoint(torch.tanh, x, use_reentrant=True))
    recomputed = run(lambda x: checkpoint(torch.tanh, x, use_reentrant=False))
    assert (recomputed["full"].alphas == run(torch.tanh)["full"].alphas).all()


def test_attention_works_with_default_arguments() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.layer(x).mean(1))
            return out

    data = [(torch.randn(3, 5, 8), torch.tensor([0, 1, 2]))]
    measured = he.slq(Classifier(), loss, data=data, steps=3, probes=1).manifest["verification"]
    assert measured["finite_difference"] < 1e-4


def test_a_model_that_cannot_run_in_float64_is_checked_in_float32() -> None:
    constant = torch.randn(8)

    def function(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("float32 only")
        return torch.tanh(x * constant)

    assert run(function).manifest["verification"]["dtype"] == "float32"


def test_parameters_are_restored_bit_for_bit() -> None:
    model = mlp().model
    before = [parameter.detach().clone() for parameter in model.parameters()]
    he.slq(
        model.double(),
        mlp().loss,
        data=[(x.double(), y) for x, y in mlp().data],
        steps=2,
        probes=1,
        precision="fp64",
    )
    for parameter, origin in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.detach(), origin.double())


def test_a_linear_loss_has_zero_curvature() -> None:
    spectrum = he.slq(nn.Linear(5, 1), lambda m, b: m(b).mean(), data=[torch.randn(4, 5)], steps=5, probes=2)["full"]
    assert (spectrum.steps == 1).all()
    assert (spectrum.nodes == 0).all()


def test_an_infinite_second_derivative_is_reported() -> None:
    def norm_at_zero(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) * 0).pow(2).sum(1).sqrt().mean()

    for check in (True, False):
        with pytest.raises(he.HvpEngineError, match="is not finite"):
            he.slq(Wrapped(lambda x: x), norm_at_zero, data=DATA, steps=3, probes=1, check=check)


class Text(nn.Module):
    """Tokens, of which one kind is padding; the table may be the head's, too."""

    def __init__(self, *, tied: bool, row: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(7, 4, padding_idx=row), nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.table(tokens)).mean(1))
        return logits


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("row", [0, 6, -1])
def test_padding_rows_are_constants_not_faults(row: int, *, tied: bool, fused: bool) -> None:
    torch.manual_seed(1)
    tokens, targets = torch.randint(1, 6, (8, 5)), torch.randint(0, 7, (8,))
    tokens[:, 3:] = row % 7
    model = Text(tied=tied, row=row)
    padding = model.table.weight[row].detach().clone()

    def plain(model: Text, batch: tuple[Tensor, Tensor]) -> Tensor:
        rows = model.table.weight[batch[0]]
        rows = torch.where((batch[0] == row % 7)[..., None], padding, rows)
        return F.cross_entropy(model.head(torch.tanh(rows).mean(1)), batch[1])

    def through_torch(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch._C.DisableTorchFunction():  # keeps the engine's own embedding out
            return loss(model, batch)

    chosen = loss if fused else through_torch
    measured = he.slq(model, chosen, data=[(tokens, targets)], steps=3, probes=1).manifest["verification"]
    assert measured["finite_difference"] < 1e-5 and measured["asymmetry"] < 1e-10 and measured["curvature"] > 0
    v = torch.randn(2, sum(p.numel() for p in model.parameters()))
    found, right = (he.hvp(model, f, {"full": v}, data=[(tokens, targets)])["full"] for f in (chosen, plain))
    assert torch.allclose(found, right, rtol=1e-4, atol=1e-6)
    assert he.doctor(model, chosen, data=[(tokens, targets)], seconds=3).ok


@pytest.mark.parametrize("size", [2, 16])
def test_statistics_of_the_batch_are_no_faults(size: int) -> None:
    def redundancy(model: nn.Module, batch: Tensor) -> Tensor:
        z = model(batch)
        z = (z - z.mean(0)) / z.std(0)
        return ((z.T @ z.roll(1, 0) / len(z) - torch.eye(3)) ** 2).sum()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    data = [torch.randn(size, 4)]
    measured = he.slq(model, redundancy, data=data, steps=3, probes=1).manifest["verification"]
    if size == 2:  # two samples have no curvature but rounding: that is not tested
        assert measured["finite_difference"] is None
    else:
        assert measured["finite_difference"] < 1e-4 and measured["asymmetry"] < 1e-8
    assert he.doctor(model, redundancy, data=data, seconds=3).ok


def zeros(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
    return model


def lasso(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return loss(model, batch) + sum(p.abs().sum() for p in model.parameters())


KINKS: dict[str, Any] = {
    "absolute values at zero": (lambda: zeros(Wrapped(torch.tanh)), lasso),
    "relu at zero": (lambda: zeros(Wrapped(lambda x: F.relu(x * (x > 1)))), loss),
    "ties of maxima": (lambda: Wrapped(lambda x: F.max_pool1d(x[:, None] * 0 + x.mean(), 2, 1, 1)[:, 0, :8]), loss),
    "clamp": (lambda: Wrapped(lambda x: x.clamp(-0.1, 0.1) + x * 0.1), loss),
    "hardtanh": (lambda: Wrapped(lambda x: F.hardtanh(x) * x), loss),
}


@pytest.mark.parametrize("kind", KINKS)
def test_kinks_are_no_faults(kind: str) -> None:
    make, chosen = KINKS[kind]
    assert he.slq(make(), chosen, data=DATA, steps=3, probes=1).manifest["verification"] is not None
    assert he.doctor(make(), chosen, data=DATA, seconds=3).ok


@pytest.mark.parametrize("kind", ["absolute values at zero", "relu at zero"])
def test_a_wrong_derivative_beside_kinks_is_found(kind: str) -> None:
    make, chosen = KINKS[kind]

    def both(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return chosen(model, batch) + Frozen.apply(model.second.weight).pow(2).sum()

    with pytest.raises(SecondDerivativeError, match="wrong without an error message"):
        he.slq(make(), both, data=DATA, steps=3, probes=1)


def test_rounding_with_a_straight_through_gradient_is_refused() -> None:
    def function(x: Tensor) -> Tensor:
        return (x + ((x * 8).round() / 8 - x).detach()).tanh()

    with pytest.raises(SecondDerivativeError, match="wrong without an error message"):
        run(function)


def test_a_wide_network_of_relus_passes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 3000), nn.ReLU(), nn.Linear(3000, 300), nn.ReLU(), nn.Linear(300, 3))
    data = [(torch.randn(256, 20), torch.randint(0, 3, (256,)))]
    measured = he.slq(model, loss, data=data, steps=2, probes=12).manifest["verification"]
    assert measured["finite_difference"] < 1e-3


class Witness:
    """Something that can be seen to be alive."""


class Told(torch.autograd.Function):
    """Passes its input on, or raises in the second backward pass what it is told to raise in some dtype."""

    errors: dict[torch.dtype, Exception]
    lives: list[weakref.ref[Witness]]

    @staticmethod
    def forward(ctx: Any, x: Tensor, stage: int) -> Tensor:
        ctx.stage = stage
        if stage == 0:
            ctx.witness = Witness()  # lives as long as the graph
            Told.lives.append(weakref.ref(ctx.witness))
        if stage == 2 and x.dtype in Told.errors:
            raise Told.errors[x.dtype]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return Told.apply(grad, ctx.stage + 1), None


def told(x: Tensor) -> Tensor:
    found: Tensor = Told.apply(x, 0)
    return found


@pytest.fixture
def attempts() -> Iterator[None]:
    Told.errors, Told.lives = {}, []
    yield
    Told.errors, Told.lives = {}, []


@pytest.mark.usefixtures("attempts")
@pytest.mark.parametrize(
    "error",
    [RuntimeError("no float64 here"), ValueError("no float64 here"), torch.OutOfMemoryError("CUDA out of memory")],
    ids=lambda error: type(error).__name__,
)
def test_nothing_of_a_failed_attempt_is_alive_during_the_next(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    Told.errors = {torch.float64: error}
    objective = Objective(Wrapped(told), loss, DATA, "fp32")
    names = tuple(name for name, _ in objective.model.named_parameters())
    alive, attempt = [], verification._check

    def counted(*arguments: Any) -> Any:
        alive.append(sum(reference() is not None for reference in Told.lives))
        return attempt(*arguments)

    monkeypatch.setattr(verification, "_check", counted)
    with objective.arithmetic():
        batch = next(iter(objective.batches()))[1]
        measured, _ = verification.verify(objective, names, [batches.cut(batch, 0, 2), batch])
    assert measured.dtype == "float32"
    assert Told.lives
    assert alive == [0, 0, 0]  # two pieces in float64, then one in float32


@pytest.mark.usefixtures("attempts")
def test_a_device_that_failed_ends_the_test_at_once() -> None:
    error = torch.AcceleratorError("CUDA error: device-side assert triggered")
    Told.errors = {torch.float64: error}
    with pytest.raises(DeviceError, match="device-side assert"):
        run(told)


@pytest.mark.usefixtures("attempts")
def test_kernels_that_cannot_be_launched_are_no_reason_to_go_without_the_test() -> None:
    error = BackendError("A Triton kernel of this package could not be launched.")
    Told.errors = dict.fromkeys((torch.float32, torch.float64), error)
    with pytest.raises(BackendError, match="could not be launched"):
        run(told)
