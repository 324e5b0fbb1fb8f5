"""Which products are compiled, and what they may keep: rules over counts and sizes, never timings.

So the same job makes the same choices every time, a resumed one too, and has the same bits.
"""

from __future__ import annotations

import math

import torch

from hvp_engine.scheduling.sweep_plan import SweepPlan

COMPILE_AFTER = 3  # products of a kind, where nobody knows how many are to come
# Products of a block that a job must ask for, by type of device; others have not been measured. To compile takes 3 to
# 30 products of a CPU, the most with the smallest networks; a GPU gains most of each.
COMPILE_FROM = {"cpu": 32, "cuda": 8}
COMPILED_BYTES = 32 << 20  # that compiled products may take anyway ...
COMPILED_SHARE = 0.25  # ... within this share of the budget


def products_before_compiling(expected: int | None, device: torch.device) -> float:
    """Return how many products of a kind are backward passes before one is compiled.

    Args:
        expected: Products of the block that a job asks for; None where nobody knows.
        device: Where they are formed.
    """
    least = COMPILE_FROM.get(device.type, math.inf)
    if expected is None:
        return COMPILE_AFTER if least < math.inf else math.inf
    return 0 if expected >= least else math.inf


def room_to_compile(plan: SweepPlan, working: int) -> int:
    """Return the bytes that compiled products may keep.

    Args:
        plan: What was decided about graphs.
        working: What one micro-batch's graph needs with the temporaries of its passes.
    """
    left = plan.budget - working - plan.kept_graphs * plan.graph_bytes
    return max(0, min(max(COMPILED_BYTES, working), int(COMPILED_SHARE * plan.budget), left))
