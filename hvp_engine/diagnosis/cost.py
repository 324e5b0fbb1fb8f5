"""Time and memory of Hessian-vector products, measured per micro-batch size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hvp_engine.blocks import Partition, ResolvedBlock
from hvp_engine.diagnosis.allowance import GRAPH, PRODUCT, Allowance
from hvp_engine.diagnosis.report import Cost, Finding
from hvp_engine.errors import ConfigurationError, ObjectiveError
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.problem import batches
from hvp_engine.problem.objective import Objective
from hvp_engine.system import memory
from hvp_engine.system.measured_graph import build_and_weigh
from hvp_engine.system.phases import phase

_BLOCKS = 6  # measured per size, spread over the model
_PASSES = 2  # over them: timed, and weighed


@phase("measuring time and memory of products")
def measure_costs(
    objective: Objective, partition: Partition, batch: Any, allowed: Allowance, share: float
) -> tuple[list[Cost], list[Finding]]:
    """Measure products at micro-batches of 1, 2, 4, ... samples up to the whole batch, while the time lasts.

    Args:
        objective: Loss and model in the job's arithmetic.
        partition: The job's blocks.
        batch: A batch on the model's device.
        allowed: The time. No size is begun that is expected to end later; where one sample takes long, fewer blocks
            are measured.
        share: How much of what is left may be taken.

    Returns:
        At least one row, unless no size defines a loss, and a note where there was no time for any.
    """
    costs: list[Cost] = []
    names = list(partition.blocks)
    count = _blocks_in(allowed, share)
    if not count:
        return [], [allowed.left_out("Costs", "costs-not-measured", _PASSES * (GRAPH + PRODUCT))]
    chosen = [partition.blocks[name] for name in names[:: max(1, len(names) // count)][:count]]
    deadline = time.monotonic() + share * allowed.left
    spent = 0.0
    for size, piece in _pieces(batch):
        if time.monotonic() + 2 * spent > deadline:
            break
        started = time.monotonic()
        try:
            if not costs and count == _BLOCKS:
                _measured_cost(objective, partition, chosen, size, piece)  # the first call of everything is slow
            costs.append(_measured_cost(objective, partition, chosen, size, piece))
        except (ObjectiveError, ConfigurationError):  # a mean over samples whose targets are all ignored, say
            continue
        spent = time.monotonic() - started
    return costs, []


def _blocks_in(allowed: Allowance, share: float) -> int:
    """Choose how many blocks are measured; 0 where there is no time for one."""
    if allowed.allows(2 * _PASSES * (GRAPH + _BLOCKS * PRODUCT), share):
        return _BLOCKS
    fitting = (
        count for count in range(_BLOCKS - 1, 0, -1) if allowed.allows(_PASSES * (GRAPH + count * PRODUCT), share)
    )
    return next(fitting, 0)


def _pieces(batch: Any) -> Iterator[tuple[int | None, Any]]:
    size = batches.samples(batch)
    if size is None:
        yield None, batch
        return
    step = 1
    while step < size:
        yield step, batches.cut(batch, 0, step)
        step *= 2
    yield size, batch


def _measured_cost(
    objective: Objective, partition: Partition, blocks: list[ResolvedBlock], size: int | None, batch: Any
) -> Cost:
    """Time one size with a heap that keeps its memory, as the engine does, then weigh it with one that does not."""
    parameters = objective.parameters_named(partition.parameters)
    kept: list[Tensor] = list(parameters.values())

    def build() -> GradientGraph:
        return GradientGraph(*objective.evaluate(batch), parameters)

    def multiply(graph: GradientGraph) -> None:
        for block in blocks:
            vectors = torch.ones(1, block.numel, dtype=objective.dtype, device=objective.device)
            graph.product(block, vectors, torch.zeros_like(vectors), batched=False)

    with objective.arithmetic():
        with retained_heap():
            begun = _now(objective.device)
            graph = build()
            built = _now(objective.device)
            multiply(graph)
            ended = _now(objective.device)
            del graph
        with memory.peak_memory(objective.device) as peak:
            graph, graph_bytes = build_and_weigh(build, lambda built: built.gradients.values(), kept)
            multiply(graph)
            del graph
    return Cost(size, built - begun, (ended - built) / len(blocks), graph_bytes, peak.bytes)


def _now(device: torch.device) -> float:
    """Read the clock when all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
