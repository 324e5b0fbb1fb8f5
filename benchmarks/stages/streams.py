"""Stage 6: what several vectors per pass save, what small models cost, and whether a CUDA graph holds a product."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from jobs import SIZES
from timing import alternate

from hvp_engine.problem.precision import Precision

from . import captured
from .clock import Clock, free, tried
from .gpt_products import Engine, depths, gpt_on
from .runner import Emit

SECONDS = 27.0
ROUNDS = 3


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Measure GPT-2, then the small models, then the captured graph."""
    clock = Clock(SECONDS)
    free()
    _per_pass(emit, clock, device, "tiny" if small else "gpt2")
    for size in ("tiny",) if small else ("medium", "laptop"):
        for precision in ("bf16", "fp32"):
            if clock.has(3.0):
                with tried(emit, f"sweep, {size}, {precision}"):
                    _sweeps(emit, device, size, precision)
    if clock.has(8.0):
        with tried(emit, "captured product"):
            _captured(emit, clock, device)


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


def _captured(emit: Emit, clock: Clock, device: torch.device) -> None:
    """Emit what `captured.py` finds."""
    what = "captured product of medium"
    if device.type != "cuda":
        emit(what=what, error=f"there are no graphs on {device}")
        return
    command = [sys.executable, str(Path(captured.__file__)), "medium"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=clock.left())
    lines = done.stdout.splitlines()
    emit(what=what, **(json.loads(lines[-1]) if lines else {"error": done.stderr.strip()[-300:]}))
