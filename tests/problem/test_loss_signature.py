"""What is passed as a loss and is none."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.errors import ConfigurationError
from hvp_engine.problem.loss_signature import check_loss


class Focal(nn.Module):
    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(inputs, targets) ** 2


class Weighted(nn.CrossEntropyLoss):
    """A criterion of the user's, by way of PyTorch's."""


class Loss(nn.Module):
    """A loss that is a module, which is legitimate."""

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch), torch.zeros(4, 3))


def smooth(output: Tensor, label: Tensor, smoothing: float = 0.1) -> Tensor:
    return F.cross_entropy(output, label, label_smoothing=smoothing)


CRITERIA = [nn.CrossEntropyLoss(), F.cross_entropy, F.mse_loss, nn.MSELoss(), Focal(), Weighted(), smooth]
CRITERIA += [lambda y_hat, y: (y_hat - y).pow(2).mean(), functools.partial(smooth, smoothing=0.2)]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_is_recognised_by_every_entry(criterion: Any) -> None:
    model, data = nn.Linear(4, 3), [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
    match = r"criterion.*loss\(model, batch\)"
    with pytest.raises(ConfigurationError, match=match):
        he.hvp(model, criterion, {"full": torch.ones(1, 15)}, data=data)
    with pytest.raises(ConfigurationError, match=match):
        he.slq(model, criterion, data=data)
    with pytest.raises(ConfigurationError, match=match):
        he.doctor(model, criterion, data=data)
    with pytest.raises(ConfigurationError, match=match):
        he.plan(model, criterion, data=data)


def test_the_fix_offered_for_a_criterion_works() -> None:
    model, data = nn.Linear(4, 3), [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
    with pytest.raises(ConfigurationError) as refused:
        he.hvp(model, F.cross_entropy, {"full": torch.ones(1, 15)}, data=data)
    advice = str(refused.value).partition("loss=")[2].partition(";")[0]
    loss = eval(advice, {"cross_entropy": F.cross_entropy})
    found = he.hvp(model, loss, {"full": torch.ones(1, 15)}, data=data)["full"]
    assert torch.equal(found, he.hvp(model, he.losses.classification, {"full": torch.ones(1, 15)}, data=data)["full"])


@pytest.mark.parametrize("loss", [3, None, "loss", nn.CrossEntropyLoss, Loss])
def test_what_cannot_be_called_as_a_loss_is_refused(loss: Any) -> None:
    with pytest.raises(ConfigurationError, match="loss must be a function"):
        check_loss(loss, takes_batch=True)


@pytest.mark.parametrize(
    ("loss", "takes_batch", "match"),
    [
        (lambda model: 0, True, "takes the model alone"),
        (lambda model, batch: 0, False, "There is no data"),
        (lambda: 0, True, r"lambda model, batch: \.\.\."),
        (lambda model, x, y: 0, True, r"arguments \(model, x, y\)"),
        (lambda model, batch, *, scale: 0, True, "scale"),
    ],
)
def test_signatures_that_do_not_admit_the_call_are_refused(loss: Any, takes_batch: bool, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        check_loss(loss, takes_batch=takes_batch)


@pytest.mark.parametrize(
    "loss",
    [Loss(), lambda m, b: 0, lambda *a: 0, lambda model, batch, scale=1.0: 0, functools.partial(lambda s, m, b: 0, 1)],
)
def test_losses_of_every_form_are_taken(loss: Any) -> None:
    check_loss(loss, takes_batch=True)


def test_a_loss_that_meets_the_model_where_it_wants_outputs_is_told_how_it_is_called() -> None:
    with pytest.raises(he.HvpEngineError, match=r"called as loss\(model, batch\)"):
        he.hvp(
            nn.Linear(4, 3),
            lambda a, b: F.cross_entropy(a, b[1]),
            {"full": torch.ones(1, 15)},
            data=[(torch.randn(8, 4), torch.randint(0, 3, (8,)))],
        )
