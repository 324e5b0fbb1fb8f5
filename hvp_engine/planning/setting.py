"""The setting that fits: micro-batch, streams per pass, basis, waves; by the same rules as the engine's own choices."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch

from hvp_engine.errors import OutOfMemoryError
from hvp_engine.problem.precision import Precision, working_dtype
from hvp_engine.scheduling.scheduler import BATCHED_BYTES, BATCHED_STREAMS, GRAPH_SHARE, TRANSIENT
from hvp_engine.scheduling.waves import group_streams, stream_bytes
from hvp_engine.system.formatting import format_bytes, format_count

BasisName = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Job:
    """Sizes of a job.

    Attributes:
        numel: Length of each block's vectors.
        steps: Lanczos steps.
        probes: Vectors per block.
        precision: Arithmetic of the products.
        reorthogonalize: ``"full"`` or ``"none"``.
        samples: Leading dimension of the largest batch, None where it cannot be split.
        batches: How many batches of that size the data amounts to.
        parameters: Bytes of the model.
    """

    numel: dict[str, int]
    steps: int
    probes: int
    precision: Precision
    reorthogonalize: Literal["full", "none"]
    samples: int | None
    batches: float
    parameters: int

    def store_dtype(self, basis: BasisName) -> torch.dtype | None:
        """Dtype of the kept vectors; None where none are kept."""
        if self.reorthogonalize == "none":
            return None
        if self.precision == "fp64":
            return torch.float64
        return torch.float32 if basis == "fp32" else torch.bfloat16

    def stream_bytes(self, block: str, basis: BasisName) -> int:
        """Lanczos vectors of one stream, work vectors included."""
        dtype = working_dtype(self.precision)
        return stream_bytes(self.steps, self.numel[block], dtype, self.store_dtype(basis))


@dataclass(frozen=True)
class GraphSize:
    """Bytes of a micro-batch's gradient graph: a fixed part and one per sample."""

    fixed: float
    per_sample: float

    def of(self, samples: int | None) -> int:
        """Bytes for some samples."""
        return int(self.fixed + self.per_sample * (samples or 1))


@dataclass(frozen=True)
class Setting:
    """How the job is run.

    Attributes:
        microbatch: Samples differentiated at once; None where batches cannot be split.
        microbatches: How many of them a sweep has.
        share: Share of the counted micro-batch that one has on average; below 1 where batches are uneven.
        precision: Arithmetic of the products.
        basis: Dtype of the kept vectors.
        streams_per_pass: Vectors in one second backward pass.
        kept_graphs: Graphs that stay alive between sweeps.
        waves: Streams of each block that run together, group by group.
        graph_bytes: One micro-batch's graph.
        vector_bytes: Lanczos vectors of the largest wave.
        budget: Bytes for graphs, temporaries and vectors.
    """

    microbatch: int | None
    microbatches: int
    share: float
    precision: Precision
    basis: BasisName
    streams_per_pass: int
    kept_graphs: int
    waves: tuple[dict[str, int], ...]
    graph_bytes: int
    vector_bytes: int
    budget: int


def choose_microbatch(job: Job, graph: GraphSize, budget: int, microbatch: int | None) -> int | None:
    """Halve the largest batch until its graph and the temporaries of its passes fit.

    Raises:
        OutOfMemoryError: Not even one sample fits.
    """
    wanted = job.samples if microbatch is None or job.samples is None else min(job.samples, microbatch)
    while wanted is not None and wanted > 1 and TRANSIENT * graph.of(wanted) > budget:
        wanted = (wanted + 1) // 2
    need = int(TRANSIENT * graph.of(wanted))
    if need > budget:
        raise OutOfMemoryError(
            f"No setting fits: the gradient graph of the smallest micro-batch and its temporaries need about "
            f"{format_bytes(need)}, of {format_bytes(budget)}. Use shorter sequences, a smaller model, activation "
            "checkpointing, or a device with more memory."
        )
    return wanted


def fit(job: Job, graph: GraphSize, budget: int, basis: BasisName, microbatch: int | None, *, on_cpu: bool) -> Setting:
    """Group the streams and count the graphs that can stay.

    Args:
        job: The job's sizes.
        graph: Size of a gradient graph.
        budget: Bytes for graphs, temporaries and vectors.
        basis: Dtype of the kept vectors.
        microbatch: As chosen by :func:`choose_microbatch`.
        on_cpu: Whether passes are batched by the CPU's rule.

    Raises:
        OutOfMemoryError: One stream of a block does not fit.
    """
    size = graph.of(microbatch)
    working = int(TRANSIENT * size)
    waves, largest = _waves(job, budget - working, basis)
    left = max(working, budget - largest)
    pieces = 1 if job.samples is None or microbatch is None else math.ceil(job.samples / microbatch)
    microbatches = math.ceil(job.batches) * pieces
    equal = job.batches * (1.0 if job.samples is None or microbatch is None else job.samples / microbatch)
    room = BATCHED_BYTES if on_cpu else budget // 4
    return Setting(
        microbatch=microbatch,
        microbatches=microbatches,
        share=equal / microbatches,
        precision=job.precision,
        basis=basis,
        streams_per_pass=max(1, min(BATCHED_STREAMS, room // max(1, size), job.probes)),
        kept_graphs=min(microbatches, int(left * GRAPH_SHARE) // max(1, size)),
        waves=waves,
        graph_bytes=size,
        vector_bytes=largest,
        budget=budget,
    )


def _waves(job: Job, room: int, basis: BasisName) -> tuple[tuple[dict[str, int], ...], int]:
    """Streams per block of every wave, and the bytes of the largest one."""
    needs = {block: job.stream_bytes(block, basis) for block in job.numel}

    def refuse(block: str, need: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"No setting fits: one stream of block {block!r} ({format_count(job.numel[block])} parameters, "
            f"{min(job.steps, job.numel[block])} steps, {basis} basis) needs {format_bytes(need)} beside the gradient "
            f"graph, which leaves {format_bytes(max(room, 0))}. Use fewer steps, reorthogonalize='none', smaller "
            "blocks, a smaller micro-batch, or a device with more memory."
        )

    waves, largest = group_streams(needs, job.probes, room, refuse)
    return tuple(dict(Counter(block for block, _ in wave)) for wave in waves), largest
