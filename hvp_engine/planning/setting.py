"""The setting that fits a planned job: decided by the engine's rules, :mod:`hvp_engine.scheduling.policy`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hvp_engine.krylov.basis import Elsewhere
from hvp_engine.krylov.registry import AUTO
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.problem.precision import Precision
from hvp_engine.scheduling import expected, policy, storages
from hvp_engine.scheduling.expected import BlockWork
from hvp_engine.scheduling.policy import CurvaturePlan, GraphSize
from hvp_engine.scheduling.rounds import first_round, round_sizes
from hvp_engine.scheduling.waves import StreamSizes


@dataclass(frozen=True)
class JobSizes:
    """Sizes of a job.

    Attributes:
        numel: Length of each block's vectors.
        settings: What was asked for.
        samples: Leading dimension of the largest batch, None where it cannot be split.
        batches: How many batches of that size the data amounts to.
        parameters: Bytes of the model.
        gradient_bytes: The gradient with respect to the parameters of all blocks.
        at_most: Whether an adaptive job takes all that it may, and not what is expected.
        room: Bytes that there are for vectors; 0 until it is known.
    """

    numel: dict[str, int]
    settings: JobSettings
    samples: int | None
    batches: float
    parameters: int
    gradient_bytes: int = 0
    at_most: bool = False
    room: float = 0.0

    @property
    def streams(self) -> StreamSizes:
        """Sizes of the streams that the job begins with."""
        settings = self.settings
        if settings.targets is not None:
            return first_round(self.numel, settings, self.room)
        return StreamSizes(self.numel, settings.steps, settings.numbers, settings.dtype, settings.lanczos.kept)

    @property
    def work(self) -> dict[str, BlockWork]:
        """What each block takes."""
        return (expected.most_work if self.at_most else expected.expected_work)(self.numel, self.settings)

    @property
    def products(self) -> dict[str, int]:
        """Products of each block."""
        return {block: work.products for block, work in self.work.items()}

    @property
    def rounds(self) -> list[StreamSizes]:
        """Sizes of the streams of each round."""
        work = self.work
        further = {block: range(w.first, w.probes) for block, w in work.items() if w.probes > w.first}
        steps = {block: work[block].steps for block in further}
        return [self.streams, *([round_sizes(self.numel, self.settings, further, steps)] if further else [])]

    def with_settings(self, **changed: Any) -> JobSizes:
        """Return the same job with other settings."""
        return replace(self, settings=replace(self.settings, **changed))

    def decided(self, basis: str) -> JobSizes:
        """Return the job with the basis that was chosen for it, where it left that open."""
        return self.with_settings(basis=basis) if self.settings.basis == AUTO else self

    def record(self) -> dict[str, Any]:
        """Return the sizes as plain data."""
        settings = self.settings
        return {
            "numel": self.numel,
            "steps": settings.steps,
            "probes": settings.probes,
            "tolerance": settings.tolerance,
            "products": self.products,
            "precision": settings.precision,
            "reorthogonalize": settings.reorthogonalize,
            "samples": self.samples,
            "batches": self.batches,
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class Setting:
    """How the job is run.

    Attributes:
        microbatch: Samples differentiated at once; None where batches cannot be split.
        microbatches: How many of them a sweep has.
        share: Share of the counted micro-batch that one has on average; below 1 where batches are uneven.
        precision: Arithmetic of the products.
        basis: Dtype of the kept vectors.
        streams_per_pass: Vectors that one second backward pass may carry.
        vectors_per_pass: Vectors that it does carry, by block: fewer where vectors are long, or the block has no more.
        kept_graphs: Graphs that stay alive between sweeps.
        waves: Streams of each block that run together, group by group.
        sweeps: Sweeps over the data of each wave.
        graph_bytes: One micro-batch's graph.
        vector_bytes: Lanczos vectors of the largest wave, on the device.
        elsewhere_bytes: The same of host memory or the disk.
        reads_from: Where every step reads them, if that is not the device's memory; a file that the kernel can keep in
            memory counts as memory of the host.
        curvature: Where the head's curvature is kept; None where it is not formed.
        budget: Bytes for graphs, temporaries, vectors and the head's curvature.
    """

    microbatch: int | None
    microbatches: int
    share: float
    precision: Precision
    basis: str
    streams_per_pass: int
    vectors_per_pass: dict[str, int]
    kept_graphs: int
    waves: tuple[dict[str, int], ...]
    sweeps: tuple[int, ...]
    graph_bytes: int
    vector_bytes: int
    elsewhere_bytes: int
    reads_from: Elsewhere | None
    curvature: CurvaturePlan | None
    budget: int

    @property
    def held_bytes(self) -> int:
        """Memory that the head's curvature takes."""
        return 0 if self.curvature is None else self.curvature.memory_bytes

    def record(self) -> dict[str, Any]:
        """Return the setting as plain data."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        curvature = None if self.curvature is None else str(self.curvature)
        return {**plain, "waves": len(self.waves), "sweeps": sum(self.sweeps), "curvature": curvature}


def fit(
    job: JobSizes,
    graph: GraphSize,
    budget: int,
    microbatch: int | None,
    curvature: CurvaturePlan | None,
    *,
    on_cpu: bool,
    rooms: Mapping[Elsewhere, float] | None = None,
) -> Setting:
    """Group the streams and count the graphs that can stay.

    Args:
        job: The job's sizes.
        graph: Size of a gradient graph.
        budget: Bytes for graphs, temporaries, vectors and the head's curvature.
        microbatch: As chosen by :func:`hvp_engine.scheduling.policy.choose_microbatch`.
        curvature: As chosen by :func:`hvp_engine.scheduling.policy.choose_curvature`.
        on_cpu: Whether passes are batched by the CPU's rule.
        rooms: As for :func:`hvp_engine.scheduling.policy.choose_waves`.

    Raises:
        OutOfMemoryError: One stream of a block does not fit.
    """
    size, working, work = graph.of(microbatch), graph.working(microbatch), job.work
    held = 0 if curvature is None else curvature.memory_bytes
    room = policy.spare(working, budget, held)
    rounds = [policy.choose_waves(streams, budget, working, held, rooms) for streams in replace(job, room=room).rounds]
    vector_bytes = max(waves.vector_bytes for waves in rounds)
    away = max(waves.elsewhere_bytes for waves in rounds)
    waves = [(number, Counter(block for block, _ in wave)) for number, r in enumerate(rounds) for wave in r.groups]
    left = policy.budget_of_graphs(budget, working, vector_bytes + held)
    cut = 1.0 if job.samples is None or microbatch is None else job.samples / microbatch
    microbatches = math.ceil(job.batches) * math.ceil(cut)

    def streams(vector_bytes: int) -> int:
        return policy.choose_streams_per_pass(size, vector_bytes, left, on_cpu=on_cpu)

    item = job.settings.dtype.itemsize
    return Setting(
        microbatch=microbatch,
        microbatches=microbatches,
        share=job.batches * cut / microbatches,
        precision=job.settings.precision,
        basis=job.settings.basis,
        streams_per_pass=streams(0),
        vectors_per_pass={name: min(streams(item * job.numel[name]), each.vectors) for name, each in work.items()},
        kept_graphs=min(microbatches, policy.count_kept_graphs(size, job.gradient_bytes, working, left)),
        waves=tuple(dict(wave) for _, wave in waves),
        sweeps=tuple(max(work[block].sweeps[number] for block in wave) for number, wave in waves),
        graph_bytes=size,
        vector_bytes=vector_bytes,
        elsewhere_bytes=away,
        reads_from=storages.read_from(job.streams.elsewhere, away, working + vector_bytes + held, rooms, on_cpu=on_cpu),
        curvature=curvature,
        budget=budget,
    )
