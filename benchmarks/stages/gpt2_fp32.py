"""Stage 8: the products of stage 5 in fp32 and tf32, with half of its samples."""

from __future__ import annotations

import torch
from jobs import SIZES

from hvp_engine.problem.precision import Precision

from .clock import Clock, free, tried
from .gpt_products import FULL, Engine, Taken, depths, emit_rates, gpt_on, measure, measure_expert
from .runner import Emit

SECONDS = 27.0
PRECISIONS: tuple[Precision, ...] = ("tf32", "fp32")


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Measure the shallowest block and the whole Hessian."""
    clock = Clock(SECONDS)
    free()
    size = "tiny" if small else "gpt2"
    job = gpt_on(device, size, SIZES[size][1] // 2)
    every = depths(job.model.config)
    first = next(iter(every))
    taken: dict[Precision, dict[str, Taken]] = {}
    for precision in PRECISIONS:
        with tried(emit, f"operator, {precision}"):
            engine = Engine(job, {name: every[name] for name in (first, FULL)}, precision)
            emit(what=f"operator, {precision}", s=engine.seconds, **engine.facts())
            taken[precision] = measure(emit, clock, engine, seconds_of_one=4.0)
            del engine
    for precision in PRECISIONS:
        if clock.has(5.0):
            with tried(emit, f"expert, {precision}"):
                measure_expert(emit, clock, job, [first], precision)
    for precision, seconds in taken.items():
        if clock.has(3.0):
            emit_rates(emit, job, every, precision, seconds)
