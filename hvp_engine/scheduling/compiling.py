"""Which products are compiled, and what they may keep: rules over counts and sizes, never timings.

So the same job makes the same choices every time, a resumed one too, and has the same bits.
"""

from __future__ import annotations

import math

import torch

from hvp_engine.scheduling.sweep_plan import SweepPlan

COMPILED_ON = frozenset(("cpu", "cuda"))  # types of devices; others have not been measured
COMPILE_AFTER = 3  # products of a kind: to compile takes about as long
COMPILE_FROM = 8  # products of a block that a job must ask for
COMPILED_BYTES = 32 << 20  # that compiled products may take anyway ...
COMPILED_SHARE = 0.25  # ... within this share of the budget


def products_before_compiling(expected: int | None, device: torch.device) -> float:
    """Return how many products of a kind are backward passes before one is compiled.

    Args:
        expected: Products of the block that a job asks for; None where nobody knows.
        device: Where they are formed.
    """
    if device.type not in COMPILED_ON:
        return math.inf
    if expected is None:
        return COMPILE_AFTER
    return 0 if expected >= COMPILE_FROM else math.inf


def room_to_compile(plan: SweepPlan, working: int) -> int:
    """Return the bytes that compiled products may keep.

    Args:
        plan: What was decided about graphs.
        working: What one micro-batch's graph needs with the temporaries of its passes.
    """
    left = plan.budget - working - plan.kept_graphs * plan.graph_bytes
    return max(0, min(max(COMPILED_BYTES, working), int(COMPILED_SHARE * plan.budget), left))
