"""Signum and SignSGD, which PyTorch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from hvp_engine.errors import ConfigurationError


class Signum(Optimizer):
    """Step by the sign of an average of gradients: ``buf = mu*buf + (1-mu)*g; w -= lr*sign(buf)``.

    Args:
        params: Parameters, or groups of them, as for every optimizer of PyTorch.
        lr: Length of the step in every coordinate.
        momentum: mu in [0, 1); 0 is SignSGD.
        weight_decay: Added to the gradient times the weights (L2), before the average.

    Raises:
        ConfigurationError: A number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1:
            raise ConfigurationError(
                f"Signum needs lr >= 0, weight_decay >= 0 and momentum in [0, 1), not {lr}, {weight_decay}, {momentum}."
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; a closure computes loss and gradients first, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
        if group["momentum"]:
            average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
            gradient = average.mul_(group["momentum"]).add_(gradient, alpha=1 - group["momentum"])
        parameter.add_(gradient.sign(), alpha=-group["lr"])
