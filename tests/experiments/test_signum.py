"""Signum and SignSGD against steps written out by hand."""

from __future__ import annotations

import pytest
import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.signum import Signum


def stepped(gradients: list[list[float]], **options: float) -> torch.Tensor:
    weight = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    optimizer = Signum([weight], **options)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        optimizer.step()
    return weight.detach()


def test_signsgd_steps_by_the_sign_of_the_gradient_alone() -> None:
    found = stepped([[3.0, -0.1, 0.0]], lr=0.5, momentum=0.0)
    assert torch.equal(found, torch.tensor([0.5, -1.5, 0.5]))


def test_signum_steps_by_the_sign_of_the_average() -> None:
    # Averages with mu = 0.5: 0.5, then 0.5 * 0.5 - 0.5 * 0.2 = 0.15: the second gradient's sign does not win.
    found = stepped([[1.0, 1.0, 1.0], [-0.2, -2.0, 1.0]], lr=0.25, momentum=0.5)
    assert torch.equal(found, torch.tensor([0.5, -2.0, 0.0]))


def test_weight_decay_is_added_to_the_gradient_before_the_sign() -> None:
    # -0.5 + 1.0 * 1.0 > 0, 0.5 - 2.0 < 0, -1.0 + 0.5 < 0
    found = stepped([[-0.5, 0.5, -1.0]], lr=0.5, momentum=0.0, weight_decay=1.0)
    assert torch.equal(found, torch.tensor([0.5, -1.5, 1.0]))


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned() -> None:
    weight = torch.tensor([2.0], requires_grad=True)
    optimizer = Signum([weight], lr=0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert weight.item() == 1.5


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": 0.1, "momentum": 1.0}, {"lr": 0.1, "weight_decay": -1.0}])
def test_numbers_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=r"Signum needs lr >= 0"):
        Signum([torch.zeros(1, requires_grad=True)], **options)
