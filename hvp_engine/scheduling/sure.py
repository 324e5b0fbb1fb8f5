"""Whether graphs fit whatever they are like, so that none has to be measured: a rule over sizes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from hvp_engine.problem import batches
from hvp_engine.problem.objective import Objective
from hvp_engine.scheduling import policy

SURE = 4.0  # no graph is larger than this many forward passes: their results, and what they save


def surely_fit(forward: float, graphs: int, gradient_bytes: int, with_passes: float, budget: int) -> bool:
    """Say whether graphs of all batches fit beside one another, with the temporaries of the passes through one.

    Args:
        forward: Bytes that the largest batch's forward pass makes and saves.
        graphs: Batches.
        gradient_bytes: The gradient at the root of each graph.
        with_passes: A graph with the temporaries of its passes, see :func:`hvp_engine.scheduling.policy.transient`.
        budget: Bytes for graphs and their temporaries.
    """
    graph = SURE * forward
    return (graphs - 1 + with_passes) * graph + graphs * gradient_bytes <= policy.GRAPH_SHARE * budget


def fits_for_sure(objective: Objective, largest: object, parameters: Iterable[Tensor], budget: int) -> bool:
    """Say it of an objective, by what its first evaluation made; no where that was not seen.

    Args:
        objective: Loss and data.
        largest: The largest batch.
        parameters: Those that blocks touch.
        budget: Bytes for graphs and their temporaries.
    """
    seen = objective.seen
    if seen is None:
        return False
    with_passes = policy.transient(objective.dtype, convolves=seen.convolves, on_cpu=objective.device.type == "cpu")
    forward, graphs = seen.of(batches.samples(largest)), max(1, len(objective.layouts))
    return surely_fit(forward, graphs, sum(p.nbytes for p in parameters), with_passes, budget)
