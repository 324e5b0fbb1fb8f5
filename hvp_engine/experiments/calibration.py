"""BatchNorm as a network without training needs it: statistics of the data, in place of mean 0 and variance 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d

from hvp_engine.problem.objective import Loss

_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)


@torch.no_grad()
def calibrate(model: nn.Module, loss: Loss, batches: Sequence[Any]) -> nn.Module:
    """Give every BatchNorm the mean statistics of the batches, in one pass, and return the model in eval mode.

    Args:
        model: Changed in place: its running statistics and its mode; a model without BatchNorm only gets eval mode.
        loss: As for :func:`hvp_engine.slq`; its value is not used.
        batches: The data.
    """
    norms = [module for module in model.modules() if isinstance(module, _NORMS) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    if norms:
        model.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # every batch weighs the same
        for batch in batches:
            loss(model, batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()
