"""Measures a few passes of the job's own model, so that a prediction for this machine starts from facts."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvp_engine.blocks import BlockSpec
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.planning.cost import Calibration
from hvp_engine.planning.counting import Counts
from hvp_engine.planning.devices import Device, touch_rate
from hvp_engine.planning.parts import operations
from hvp_engine.planning.setting import Setting
from hvp_engine.problem import batches
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.randomness import UndisturbedData
from hvp_engine.problem.reading import refuse_exhausted
from hvp_engine.scheduling.policy import memory_for

_BLOCKS = 4  # measured at most, from the cheapest to the dearest
_ENOUGH = 0.4  # seconds of repetitions of one pass
_ROUNDS = 5


def calibrate(
    kind: type[CurvatureOperator],
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec,
    data: Iterable[Any] | None,
    counts: Counts,
    setting: Setting,
    device: Device,
) -> Calibration:
    """Run one micro-batch's gradient graph and a few blocks' products.

    Args:
        kind: What multiplies with the matrix.
        model: With weights, on the CPU.
        loss: The job's loss.
        blocks: The job's blocks.
        data: The job's data; one micro-batch of the counted size is used.
        counts: Counted work of that micro-batch.
        setting: The job's setting.
        device: This machine's ceilings, which the measurements are compared with.
    """
    began = time.perf_counter()
    memory = memory_for(setting.budget)
    operator = kind(model, loss, blocks, data=_one(data, setting), precision=setting.precision, memory=memory)
    operator.verify(sum(map(Counter, setting.waves), Counter()))  # fewer products than the job's: the least it takes
    setup = time.perf_counter() - began
    counted = {
        name: operations(work, device, setting.precision, setting.vectors_per_pass[name]).seconds
        for name, work in counts.blocks.items()
    }
    chosen = _spread(sorted(counted, key=lambda name: counted[name]))
    with retained_heap():  # as during a whole job, not given back after every product
        graph_seconds, points = _measure(operator, chosen, setting)
    graph = sum(operations(work, device, setting.precision).seconds for work in (counts.forward, counts.gradient))
    curve = sorted((counted[name], seconds) for name, seconds in points.items())
    return Calibration(graph_seconds / graph, _curve(curve), setup, 1.0 / touch_rate())


def _one(data: Iterable[Any] | None, setting: Setting) -> list[Any] | None:
    """Return one micro-batch of the job's data, its largest."""
    if data is None:
        return None
    largest = batches.largest(UndisturbedData(data))
    if largest is None:
        raise refuse_exhausted()
    return [largest if setting.microbatch is None else batches.cut(largest, 0, setting.microbatch)]


def _spread(names: list[str]) -> list[str]:
    """Return a few of the names, evenly, first and last among them."""
    if len(names) <= _BLOCKS:
        return names
    return [names[round(i * (len(names) - 1) / (_BLOCKS - 1))] for i in range(_BLOCKS)]


def _measure(operator: CurvatureOperator, names: list[str], setting: Setting) -> tuple[float, dict[str, float]]:
    """Measure the seconds of a gradient graph, and of one vector's product with each named block."""
    generator = torch.Generator().manual_seed(0)

    def vectors(name: str) -> dict[str, Tensor]:
        drawn = torch.randn(
            setting.vectors_per_pass[name],
            operator.numel[name],
            generator=generator,
            dtype=operator.dtype,
            device="cpu",
        )
        return {name: drawn / drawn.norm(dim=1, keepdim=True)}

    points: dict[str, float] = {}
    for name in names:
        given = vectors(name)
        operator.matmat(given)  # the graph is built and kept, the heap grows, pieces of gradients are taken
        points[name] = _seconds(lambda v=given: operator.matmat(v)) / setting.vectors_per_pass[name]  # type: ignore[misc]
    cheapest = vectors(names[0])

    def rebuild() -> None:
        operator.release()
        operator.matmat(cheapest)

    rebuilt = _seconds(rebuild) - points[names[0]] * setting.vectors_per_pass[names[0]]
    return max(rebuilt, 0.0), points


def _curve(points: list[tuple[float, float]]) -> Callable[[float], float]:
    """Measured seconds as a function of counted ones: linear between points, proportional beyond them."""
    counted = np.array([x for x, _ in points])
    ratios = np.array([y / x for x, y in points])
    return lambda seconds: seconds * float(np.interp(seconds, counted, ratios))


def _seconds(function: Callable[[], object]) -> float:
    """Wall time of one call; the median of a few where it is quick."""
    times: list[float] = []
    while len(times) < _ROUNDS and sum(times) < _ENOUGH:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
