"""What an optimiser says of its next step: where its learning rate begins to be unstable, and what it divides by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from hvp_engine.blocks import Block
from hvp_engine.errors import ConfigurationError
from hvp_engine.operators.preconditioned import READ_OPTIMIZERS


def innermost(optimizer: Optimizer | None) -> Optimizer | None:
    """Return the optimiser inside of what accelerate, Lightning and others put around it.

    Raises:
        ConfigurationError: It is no optimiser.
    """
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer):
        return innermost(inner)
    groups = getattr(optimizer, "param_groups", None)
    if optimizer is None or (isinstance(groups, list) and all(isinstance(group, Mapping) for group in groups)):
        return optimizer
    raise ConfigurationError(
        f"optimizer is of type {type(optimizer).__name__}, which has no param_groups; give the torch.optim.Optimizer "
        "that trains the model, or None to leave out what depends on it."
    )


def edges(optimizer: Optimizer | None) -> dict[str, float]:
    """Return the largest eigenvalues at which a quadratic's descent is stable, by the name of what they bound.

    For gradient descent that is 2 / rate, and for Adam's preconditioned matrix (2 + 2 beta1) / ((1 - beta1) rate)
    (Cohen et al. 2021, 2022). Of several learning rates the largest counts; without one above 0, or where an optimiser
    finds one of them itself as it steps, there is no bound.
    """
    groups = [] if optimizer is None else optimizer.param_groups
    rates = [_number(group.get("lr")) for group in groups]
    rate = 0.0 if None in rates else max((rate for rate in rates if rate is not None), default=0.0)
    if rate <= 0.0:
        return {}
    found = {"two_over_lr": 2.0 / rate}
    beta = max((float(group["betas"][0]) for group in groups), default=1.0) if isinstance(optimizer, Adam) else 1.0
    if beta < 1.0:
        found["preconditioned_edge"] = (2.0 + 2.0 * beta) / ((1.0 - beta) * rate)
    return found


def stepped_block(model: nn.Module, optimizer: Optimizer | None) -> Block | None:
    """Return the block of all parameters that an optimiser of Adam's kind has a divisor for; None where none has."""
    if not isinstance(optimizer, READ_OPTIMIZERS):
        return None
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in held and parameter.requires_grad and "step" in optimizer.state.get(parameter, {})
    ]
    return Block("full", [(name, None) for name in names]) if names else None


def _number(value: Any) -> float | None:
    """Return a number, or the one in a tensor; None for anything else."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) else None
