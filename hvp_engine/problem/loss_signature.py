"""Whether a loss can be called as ``loss(model, batch)``, told from what it is and from its signature."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from hvp_engine.errors import ConfigurationError

_FIX = (
    "The loss is called as loss(model, batch) and runs the model itself, with the criterion inside: "
    "loss=lambda model, batch: {criterion}(model(batch[0]), batch[1]); hvp_engine.losses has ready ones."
)
# The first two arguments of a criterion, as PyTorch and its users call them.
_OUTPUTS = re.compile(r"inputs?|logits?|preds?|predictions?|outputs?|out|y_?pred|y_?hat|scores?")
_TARGETS = re.compile(r"targets?|labels?|y|y_?true|gt|truth")


def check_loss(loss: object, *, takes_batch: bool) -> None:
    """Refuse what cannot be a loss.

    Args:
        loss: What was passed as the loss.
        takes_batch: Whether there is data, so that it is called with a batch.

    Raises:
        ConfigurationError: It cannot be called as a loss is; a criterion in its place is recognised.
    """
    if isinstance(loss, type) or not callable(loss):
        what = f"the class {loss.__name__}" if isinstance(loss, type) else type(loss).__name__
        raise ConfigurationError(
            f"loss must be a function, loss(model, batch), not {what}; hvp_engine.losses has some."
        )
    criterion = _criterion(loss)
    if criterion is not None:
        raise ConfigurationError(f"{criterion} is a criterion, not a loss. {_FIX.format(criterion=criterion)}")
    signature = _signature(loss)
    if signature is None or _takes(signature, 1 + takes_batch):
        return
    if takes_batch and _takes(signature, 1):
        raise ConfigurationError(
            "There is data, so the loss is called as loss(model, batch), and it takes the model alone; give it a "
            "second argument, or leave data out."
        )
    if not takes_batch and _takes(signature, 2):
        raise ConfigurationError(
            "There is no data, so the loss is called as loss(model), and it takes more; pass data=[batch, ...]."
        )
    call = "loss(model, batch)" if takes_batch else "loss(model)"
    raise ConfigurationError(
        f"The loss is called as {call}, which its arguments {signature} do not admit; wrap it: lambda {call[5:-1]}: ..."
    )


def _criterion(loss: Callable[..., Any]) -> str | None:
    """Return how a criterion is written in code; None for what may be a loss."""
    function: Any = type(loss).forward if isinstance(loss, nn.Module) else loss
    name = f"{type(loss).__name__}()" if isinstance(loss, nn.Module) else getattr(function, "__name__", "criterion")
    if getattr(function, "__module__", None) in ("torch.nn.modules.loss", "torch.nn.functional", "torch._C._nn"):
        return name
    signature = _signature(function)
    if signature is None:
        return None
    names = [parameter.lower() for parameter in signature.parameters if parameter != "self"]
    if len(names) >= 2 and _OUTPUTS.fullmatch(names[0]) and _TARGETS.fullmatch(names[1]):
        return "criterion" if name == "<lambda>" else name
    return None


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return a signature; None where Python does not know it, as for functions written in C."""
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
