"""What a driver costs at the paper's size: FLOP, memory, and hours on two GPUs, before anything is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hvp_engine.blocks import BlockSpec
from hvp_engine.planning.counting import evaluate, meta_copy
from hvp_engine.planning.devices import gpu
from hvp_engine.planning.meter import Meter
from hvp_engine.planning.plan import plan
from hvp_engine.problem.objective import Loss

DEVICES = {"A100": "a100-80gb", "H100": "h100-80gb"}
_UTILISATION = 0.4  # of peak, by training of Transformers in bf16: nanoGPT's GPT-2 reaches it on an A100
_PER_PARAMETER = 16  # bytes: weight, gradient and two moments in fp32


@dataclass(frozen=True)
class PlannedPart:
    """One part of a driver's work.

    Attributes:
        what: In words.
        flop: Floating-point operations.
        bytes: Memory at its peak, the model's among it.
        hours: By device, ``"A100"`` and ``"H100"``.
    """

    what: str
    flop: float
    bytes: int
    hours: Mapping[str, float]
