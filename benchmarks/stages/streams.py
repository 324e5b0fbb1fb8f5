"""Stage 6: what several vectors per pass save, what small models cost, and whether a CUDA graph holds a product."""

from __future__ import annotations

from functools import partial

import torch
from jobs import SIZES
from timing import alternate

from hvp_engine.problem.precision import Precision

from .clock import Clock, tried
from .gpt_products import Engine, depths, gpt_on
from .runner import Emit

SECONDS = 27.0
ROUNDS = 3


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Measure GPT-2, then the small models, then the captured graph."""
    clock = Clock(SECONDS)
    _per_pass(emit, clock, device, "tiny" if small else "gpt2")
    for size in ("tiny",) if small else ("medium", "laptop"):
        for precision in ("bf16", "fp32"):
            if clock.has(3.0):
                with tried(emit, f"sweep, {size}, {precision}"):
                    _sweeps(emit, device, size, precision)
    with tried(emit, "captured product"):
        _captured(emit, device, "tiny" if small else "medium")


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
            taken = alternate({"": partial(engine.operator.sweep, vectors)}, ROUNDS, device=device)[""]
            emit(
                what=f"streams, {streams}",
                ms_per_vector=1e3 * taken / streams,
                streams_at_once=plan.streams_per_pass,
                chosen=chosen,
                one_by_one=plan.single_passes or "",
            )


def _sweeps(emit: Emit, device: torch.device, size: str, precision: Precision) -> None:
    """Emit the time of a sweep over the paper's blocks with one and with ten vectors each."""
    job = gpt_on(device, size)
    engine = Engine(job, job.patterns, precision)
    for streams in (1, 10):
        vectors = {n: v for name in engine.blocks for n, v in engine.vectors(name, streams).items()}
        taken = alternate({"": partial(engine.operator.sweep, vectors)}, ROUNDS, device=device)[""]
        emit(
            what=f"sweep, {size}, {precision}, {streams} per block",
            ms=1e3 * taken,
            ms_per_product=1e3 * taken / streams / len(vectors),
            streams_per_pass=engine.operator.scheduler.plan.streams_per_pass,
        )


def _captured(emit: Emit, device: torch.device, size: str) -> None:
    """Emit the time of a product launched as one CUDA graph beside the same launched kernel by kernel."""
    if device.type != "cuda":
        emit(what="captured product", error=f"there are no graphs on {device}")
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):  # backward passes run on the stream of their forward pass
        job = gpt_on(device, size)
        name, patterns = next(iter(depths(SIZES[size][0]).items()))
        engine = Engine(job, {name: patterns}, "bf16")
        vectors = engine.vectors(name)
        for _ in range(3):
            wanted = engine.operator.sweep(vectors)[name]
        eager = alternate({"": partial(engine.operator.sweep, vectors)}, ROUNDS, device=device)[""]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            found = engine.operator.sweep(vectors)[name]
        replayed = alternate({"": graph.replay}, ROUNDS, device=device)[""]
        difference = float((found - wanted).norm() / wanted.norm())
    emit(what="captured product", ms=1e3 * replayed, ms_of_launches=1e3 * eager, difference=difference)
