"""Stage 6: what several vectors per pass save, and what small models cost."""

from __future__ import annotations

from functools import partial

import torch
from jobs import SIZES
from timing import alternate

from hvp_engine.problem.precision import Precision
from hvp_engine.scheduling.compiling import COMPILE_AFTER

from .clock import Clock, free, tried
from .gpt_products import Engine, depths, gpt_on
from .runner import Emit

SECONDS = 27.0
ROUNDS = 3


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Measure GPT-2, then the small models."""
    clock = Clock(SECONDS)
    free()
    _per_pass(emit, clock, device, "tiny" if small else "gpt2")
    for size in ("tiny",) if small else ("medium", "laptop"):
        for precision in ("bf16", "fp32"):
            if clock.has(3.0):
                with tried(emit, f"sweep, {size}, {precision}"):
                    _sweeps(emit, clock, device, size, precision)


def _per_pass(emit: Emit, clock: Clock, device: torch.device, size: str) -> None:
    """Emit the time per vector of a block by the number of vectors in a second backward pass."""
    job = gpt_on(device, size)
    name, patterns = next(iter(depths(SIZES[size][0]).items()))
    engine = Engine(job, {name: patterns}, "bf16")
    plan = engine.operator.scheduler.plan
    chosen = plan.streams_per_pass
    for streams in (1, 2, 4, 8):
        if not clock.has(4.0):
            return
        with tried(emit, f"streams, {streams}"):
            plan.streams_per_pass = streams
            vectors = engine.vectors(name, streams)
            taken = _compiled(engine, vectors, ROUNDS)
            emit(
                what=f"streams, {streams}",
                ms_per_vector=1e3 * taken / streams,
                streams_at_once=plan.streams_per_pass,
                chosen=chosen,
                one_by_one=plan.single_passes or "",
            )


def _compiled(engine: Engine, vectors: dict[str, torch.Tensor], rounds: int) -> float:
    """Return the seconds of a sweep once its products are compiled."""
    sweep = partial(engine.operator.sweep, vectors)
    for _ in range(COMPILE_AFTER):
        sweep()
    return alternate({"": sweep}, rounds, device=engine.device)[""]


def _sweeps(emit: Emit, clock: Clock, device: torch.device, size: str, precision: Precision) -> None:
    """Emit the time of a sweep over the paper's blocks with one and with ten vectors each."""
    job = gpt_on(device, size)
    engine = Engine(job, job.patterns, precision)
    taken = 0.0
    for streams in (1, 10):
        if not clock.has(5 * streams * taken):
            return
        vectors = {n: v for name in engine.blocks for n, v in engine.vectors(name, streams).items()}
        taken = _compiled(engine, vectors, 1)
        emit(
            what=f"sweep, {size}, {precision}, {streams} per block",
            ms=1e3 * taken,
            ms_per_product=1e3 * taken / streams / len(vectors),
            streams_per_pass=engine.operator.scheduler.plan.streams_per_pass,
        )
