"""The model in the dtype of the products: itself where it has that already, else a converted copy."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hvp_engine.errors import ConfigurationError
from hvp_engine.system.formatting import first_names
from hvp_engine.system.layouts import kind_of

_SETTINGS = frozenset((bool, int, float, str, type(None)))


def working_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the model itself if its floating-point tensors have the dtype, else a converted deep copy."""
    floating = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    if all(tensor.dtype == dtype for tensor in floating):
        return model
    # Tensors that deepcopy does not know are copied for it.
    odd: dict[int, object] = {id(b): b.detach().clone() for b in model.buffers() if kind_of(b) is not None}
    try:
        with torch.no_grad():  # else the parameters of a scripted model's copy are computed from the model's own
            copied = copy.deepcopy(model, odd)
    except Exception as error:
        raise ConfigurationError(
            f"The model has {floating[0].dtype} tensors, the precision asks for {dtype}, and the model cannot be "
            f"copied ({error}); convert it yourself with model.to({dtype}), and the data likewise."
        ) from error
    # Not Module.to, which drops the imaginary part of complex buffers (rotary embeddings, say).
    copied = copied.double() if dtype == torch.float64 else copied.float()
    for parameter, original in zip(copied.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(original.requires_grad)
    return copied


def settings(module: nn.Module) -> dict[str, object]:
    """Return a module's plain attributes: its mode, and whatever numbers and words it computes with."""
    return {key: value for key, value in vars(module).items() if type(value) in _SETTINGS}


@torch.no_grad()
def refresh(copied: nn.Module, model: nn.Module) -> None:
    """Give a converted copy the content of the model's parameters and buffers, and its plain attributes.

    Raises:
        ConfigurationError: The model has other parameters or buffers than the copy.
    """
    targets, sources = _tensors(copied), _tensors(model)
    odd = [name for name in {**targets, **sources} if not _fits(targets.get(name), sources.get(name))]
    if odd:
        raise ConfigurationError(
            f"The model has other parameters or buffers than when the operator was made ({first_names(odd)}), and the "
            "operator computes with a converted copy; make a new operator."
        )
    for name, target in targets.items():
        target.copy_(sources[name])
    modules = dict(model.named_modules())
    for name, module in copied.named_modules():
        vars(module).update(settings(modules[name]))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict((*model.named_parameters(), *model.named_buffers()))


def _fits(target: Tensor | None, source: Tensor | None) -> bool:
    return target is not None and source is not None and target.shape == source.shape
