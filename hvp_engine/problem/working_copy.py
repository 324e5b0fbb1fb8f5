"""The model in the dtype of the products: itself where it has that already, else a converted copy."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hvp_engine.errors import ConfigurationError


def working_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the model itself if its floating-point tensors have the dtype, else a converted deep copy."""
    floating = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    if all(tensor.dtype == dtype for tensor in floating):
        return model
    try:
        copied = copy.deepcopy(model)
    except Exception as error:
        raise ConfigurationError(
            f"The model has {floating[0].dtype} tensors, the precision asks for {dtype}, and the model cannot be "
            f"copied ({error}); convert it yourself with model.to({dtype})."
        ) from error
    # Not Module.to, which drops the imaginary part of complex buffers (rotary embeddings, say).
    return copied.double() if dtype == torch.float64 else copied.float()
