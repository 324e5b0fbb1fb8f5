"""A network in training held still to be measured, unwrapped, in eval mode and eager, and as it was afterwards."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from hvp_engine.system.torch_private import uncompiled

Mode = Literal["eval", "as it is"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside of what ``torch.compile`` and data parallelism put around it."""
    inner = uncompiled(model)
    if isinstance(inner, (DistributedDataParallel, DataParallel)):
        inner = inner.module
    return model if inner is model else unwrapped(inner)


def is_first_process() -> bool:
    """Say whether this process measures: all processes of a data-parallel training hold the same network."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


@contextlib.contextmanager
def held_still(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Hold a network's modules in eval mode, where that is asked for, and whatever is compiled eager.

    The flags are set one by one: ``model.eval()`` and ``model.train()`` may be overridden, and merge adapters, say.
    Compiled functions have no second derivative.

    Args:
        model: The network, unwrapped.
        mode: ``"eval"``, or ``"as it is"``, which leaves the flags alone.
    """
    training = [module for module in model.modules() if module.training] if mode == "eval" else []
    try:
        for module in training:
            module.training = False
        with contextlib.ExitStack() as stack:
            if "torch._dynamo" in sys.modules:  # else nothing is compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        for module in training:
            module.training = True
