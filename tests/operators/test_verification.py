"""Second derivatives that do not exist, or are wrong without saying so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import hvp_engine as he
from hvp_engine.errors import SecondDerivativeError

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


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * x.cos()


class SavesItsDerivative(torch.autograd.Function):
    """The fused-kernel mistake: the derivative is computed in forward and saved as a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.derivative = (3 * x * x).detach()
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.derivative


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
        run(OnceDifferentiable.apply)


@pytest.mark.parametrize("function", [SavesItsDerivative, WrongScale])
def test_a_silently_wrong_second_derivative_is_refused(function: Any) -> None:
    with pytest.raises(SecondDerivativeError, match="wrong without an error message"):
        run(function.apply)


def test_the_check_can_be_switched_off() -> None:
    spectra = he.slq(Wrapped(SavesItsDerivative.apply), loss, data=DATA, steps=3, probes=1, check=False)
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
