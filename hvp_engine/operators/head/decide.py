"""Decides from an objective's sizes whether its head's curvature is formed, by the rule that the planner has too."""

from __future__ import annotations

from hvp_engine.operators.head.find import LinearHead
from hvp_engine.operators.head.shelf import Shelf
from hvp_engine.problem import batches
from hvp_engine.problem.objective import Objective
from hvp_engine.scheduling.policy import (
    CURVATURE_DTYPES,
    CurvaturePlan,
    HeadSizes,
    choose_curvature,
    head_tokens,
)
from hvp_engine.system.memory import free_disk


def decide_curvature(
    head: LinearHead,
    objective: Objective,
    products: int,
    budget: int,
    left: int,
    shelf: Shelf | None,
    part: float = 1.0,
) -> CurvaturePlan | None:
    """Read the sizes off the data, and apply the rule.

    Args:
        head: The head.
        objective: Gives data, precision and device.
        products: Products with blocks that do not hold the head's weights, over the whole job.
        budget: Bytes of memory for the whole job.
        left: Bytes of it beside one graph and one stream's vectors.
        shelf: Where the matrices are kept, and those of an earlier run may be; None for temporary files.
        part: The share of the data that this process has.

    Returns:
        None where the general path costs less, or the matrices fit nowhere.
    """
    tokens = sum(head_tokens(head.rows, batches.samples(batch)) for _, batch in objective.batches())
    classes, width = head.weight.shape
    sizes = HeadSizes(round(part * tokens), width, classes, products)
    on_cpu = objective.device.type == "cpu"
    disk = free_disk() if shelf is None else shelf.free_bytes
    plan = choose_curvature(sizes, objective.precision, budget, left, disk, on_cpu=on_cpu)
    if plan is None and on_cpu and shelf is not None and shelf.stored_bytes > 0:
        # Formed by an earlier run of the job, and less memory or disk is free now: it serves from where it is.
        return CurvaturePlan(CURVATURE_DTYPES[objective.precision], shelf.stored_bytes, "disk")
    return plan
