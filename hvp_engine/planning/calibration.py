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
from hvp_engine.scheduling.checked import CHECK_PRODUCTS
from hvp_engine.scheduling.policy import memory_for
from hvp_engine.system.phases import phase

TOO_LONG = (
    "nothing was measured on the model itself, where one gradient graph would take longer than a plan should: times "
    "start from this machine's rates alone"
)

_BLOCKS = 4  # measured at most, from the cheapest to the dearest
_LIMIT = 20.0  # seconds that all of it may take, as far as can be told before
_EVALUATIONS = 4  # of the loss, with which an operator begins, in gradient graphs; its first graph is one of them
_CHECK_WIDTH = 2  # of a product in float64, over one in float32
_ENOUGH = 0.4  # seconds of repetitions of one pass
_ROUNDS = 5


@phase("measuring a few passes of the model")
def calibrate(
    kind: type[CurvatureOperator],
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec,
    data: Iterable[Any] | None,
    counts: Counts,
    setting: Setting,
    device: Device,
) -> Calibration | None:
    """Run one gradient graph and a few blocks' products, of as many samples as seconds suffice for.

    Args:
        kind: What multiplies with the matrix.
        model: With weights, on the CPU.
        loss: The job's loss.
        blocks: The job's blocks.
        data: The job's data; one micro-batch of the counted size is used, or a part of it.
        counts: Counted work of that micro-batch.
        setting: The job's setting.
        device: This machine's ceilings, which the measurements are compared with.

    Returns:
        What was measured; None where not even one sample can be measured in time.
    """
    graph = sum(operations(work, device, setting.precision).seconds for work in (counts.forward, counts.gradient))
    counted = {
        name: operations(work, device, setting.precision, setting.vectors_per_pass[name]).seconds
        for name, work in counts.blocks.items()
    }
    by_cost = sorted(counted, key=lambda name: counted[name])
    samples, share = _slice(setting.microbatch, _EVALUATIONS * graph + counted[by_cost[0]])
    if share is None:
        return None
    deadline = time.perf_counter() + _LIMIT
    began = time.perf_counter()
    memory = memory_for(setting.budget)
    operator = kind(model, loss, blocks, data=_one(data, samples), precision=setting.precision, memory=memory)
    check = _CHECK_WIDTH * CHECK_PRODUCTS * counted[by_cost[-1]] * share
    tested = time.perf_counter() + check < deadline
    if tested:
        # Fewer products than the job's: the least that the test takes.
        operator.verify(sum(map(Counter, setting.waves), Counter()))
    setup = time.perf_counter() - began + (0.0 if tested else check)
    with retained_heap():  # as during a whole job, not given back after every product
        graph_seconds, points = _measure(operator, _spread(by_cost), setting, deadline)
    curve = sorted((counted[name], seconds / share) for name, seconds in points.items())
    return Calibration(graph_seconds / (graph * share), _curve(curve), setup, 1.0 / touch_rate())


def _slice(microbatch: int | None, seconds: float) -> tuple[int | None, float | None]:
    """Choose how many samples of a micro-batch are measured, by the seconds that all of it would take.

    Returns:
        Samples, None for a batch that cannot be cut, and their share of the micro-batch; None where even one takes
        too long.
    """
    if seconds <= _LIMIT:
        return microbatch, 1.0
    if microbatch is None or seconds / microbatch > _LIMIT:
        return microbatch, None
    samples = int(microbatch * _LIMIT / seconds)
    return samples, samples / microbatch


def _one(data: Iterable[Any] | None, samples: int | None) -> list[Any] | None:
    """Return some samples of the largest batch of the job's data, None for all of them."""
    if data is None:
        return None
    largest = batches.largest(UndisturbedData(data))
    if largest is None:
        raise refuse_exhausted()
    return [largest if samples is None else batches.cut(largest, 0, samples)]


def _spread(names: list[str]) -> list[str]:
    """Return a few of the names, evenly, first and last among them."""
    if len(names) <= _BLOCKS:
        return names
    return [names[round(i * (len(names) - 1) / (_BLOCKS - 1))] for i in range(_BLOCKS)]


def _measure(
    operator: CurvatureOperator, names: list[str], setting: Setting, deadline: float
) -> tuple[float, dict[str, float]]:
    """Measure the seconds of a gradient graph, and of one vector's product with each named block, while time lasts."""
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

    cheapest = vectors(names[0])
    first = _once(lambda: operator.matmat(cheapest))  # the graph is built and kept, the heap grows
    points: dict[str, float] = {}
    for name in names:
        begun, given = time.perf_counter(), cheapest if name == names[0] else vectors(name)
        points[name] = _seconds(lambda v=given: operator.matmat(v)) / setting.vectors_per_pass[name]  # type: ignore[misc]
        ended = time.perf_counter()
        if ended + (ended - begun) > deadline:  # the next one takes no less
            break
    product = points[names[0]] * setting.vectors_per_pass[names[0]]

    def rebuild() -> None:
        operator.release()
        operator.matmat(cheapest)

    rebuilt = first if time.perf_counter() + first > deadline else _seconds(rebuild)
    return max(rebuilt - product, 0.0), points


def _curve(points: list[tuple[float, float]]) -> Callable[[float], float]:
    """Measured seconds as a function of counted ones: linear between points, proportional beyond them."""
    counted = np.array([x for x, _ in points])
    ratios = np.array([y / x for x, y in points])
    return lambda seconds: seconds * float(np.interp(seconds, counted, ratios))


def _seconds(function: Callable[[], object]) -> float:
    """Wall time of one call; the median of a few where it is quick, after one that does not count."""
    first = _once(function)  # pieces of gradients are taken
    if first > _ENOUGH:
        return first
    times: list[float] = []
    while len(times) < _ROUNDS and sum(times) < _ENOUGH:
        times.append(_once(function))
    return statistics.median(times)


def _once(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
