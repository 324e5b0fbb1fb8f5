"""The model in the dtype of the products: itself where it has that already, else a converted copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hvp_engine.errors import ConfigurationError
from hvp_engine.problem.state_walk import StateWalk
from hvp_engine.system.formatting import first_line
from hvp_engine.system.layouts import kind_of


def working_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the model itself if its floating-point tensors have the dtype, else a converted deep copy."""
    floating = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    if all(tensor.dtype == dtype for tensor in floating):
        return model
    return _converted(model, dtype)


def _converted(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    # deepcopy does not know some kinds of tensors, nor what hangs in a graph, such as activations that the last forward
    # pass left in an attribute: those are copied for it.
    odd: dict[int, object] = {id(b): b.detach().clone() for b in model.buffers() if kind_of(b) is not None}
    odd |= {id(t): t.detach().clone() for t in StateWalk(model).graphed.values() if not t.is_leaf}
    try:
        with torch.no_grad():  # else the parameters of a scripted model's copy are computed from the model's own
            copied = copy.deepcopy(model, odd)
    except Exception as error:
        found = next((t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), None)
        raise ConfigurationError(
            f"The model has {found} tensors, the precision asks for {dtype}, and the model cannot be "
            f"copied ({first_line(error)}); convert it yourself with model.to({dtype}), and the data likewise."
        ) from error
    # Not Module.to, which drops the imaginary part of complex buffers (rotary embeddings, say).
    copied = copied.double() if dtype == torch.float64 else copied.float()
    for parameter, original in zip(copied.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    return copied


@torch.no_grad()
def refresh(copied: nn.Module, model: nn.Module) -> None:
    """Give a converted copy the content of the model's parameters and buffers, which are those that it was made of."""
    for (_, target), (_, source) in zip(_tensors(copied), _tensors(model), strict=True):
        target.copy_(source)
        target.requires_grad_(source.requires_grad)


def copy_again(copied: nn.Module, model: nn.Module, dtype: torch.dtype) -> None:
    """Make a converted copy anew of a model whose modules or attributes are others, in place of the former one.

    Raises:
        ConfigurationError: The model cannot be copied.
    """
    made = _converted(model, dtype)
    copied.__class__ = type(made)
    vars(copied).clear()
    vars(copied).update(vars(made))
    made.__dict__ = vars(copied)  # methods bound to it, and modules that refer to it, see what is done to the other one


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
