"""A job as it was asked for, counted and fitted at any precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from hvp_engine.blocks import Partition
from hvp_engine.errors import OutOfMemoryError
from hvp_engine.krylov.basis import Elsewhere
from hvp_engine.krylov.registry import AUTO
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.ops.head.room import head_room
from hvp_engine.planning.counting import CountedHead, Counts, DataShape, JobCounter
from hvp_engine.planning.processes import checked_processes, share
from hvp_engine.planning.setting import JobSizes, Setting, fit
from hvp_engine.planning.shapes import NATIVE, Backends
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision
from hvp_engine.processes.team import ONE, Axes
from hvp_engine.scheduling.policy import (
    CurvaturePlan,
    GraphSize,
    HeadSizes,
    choose_curvature,
    choose_microbatch,
    head_tokens,
    make_room,
    products_past_head,
    spare,
)
from hvp_engine.scheduling.storages import LEANEST, RESIDENT, check_place, choose_basis, note, rooms
from hvp_engine.system.memory import free_disk


def natives(precision: Precision) -> Backends:
    """Say whose kernels this machine has, whatever the precision."""
    return NATIVE


@dataclass(frozen=True)
class CountedJob:
    """What was counted of a job, at the precision of its products."""

    counts: Counts
    graph: GraphSize
    head: CountedHead | None  # as a few samples have it

    @property
    def largest(self) -> tuple[int, int, int] | None:
        """The matrix product that matters most; None where there is none."""
        products = self.counts.products
        return max(products, key=products.__getitem__, default=None)


@dataclass(frozen=True)
class AskedJob:
    """A job as it was asked for, to be counted and fitted at any precision."""

    model: nn.Module
    loss: Loss
    data: DataShape
    partition: Partition
    operator: type[CurvatureOperator]
    budget: int
    on_cpu: bool
    backends: Callable[[Precision], Backends] = natives

    @property
    def rooms(self) -> dict[Elsewhere, float] | None:
        """Bytes for vectors that are kept elsewhere; None where that is another machine."""
        return rooms() if self.on_cpu else None

    def shared(self, job: JobSizes, processes: int) -> tuple[Axes, JobSizes, tuple[CountedJob, Setting, list[str]]]:
        """Share a job among processes; return how, the job of the one with most to do, and what :meth:`count` says."""
        found = self.count(job)
        processes = checked_processes(processes)
        if processes == 1:
            return ONE, job, found
        counted, setting, _ = found
        axes, part = share(job.decided(setting.basis), setting, counted.graph, processes)
        return axes, part, self.count(part)

    def count(self, job: JobSizes) -> tuple[CountedJob, Setting, list[str]]:
        """Count a micro-batch of the size that fits; return that, the setting, and what was changed in it."""
        precision = job.settings.precision
        kernels = self.backends(precision)
        counter = JobCounter(self.model, self.loss, self.data, self.partition, precision, self.operator, kernels)
        graph = counter.graph_size(job.samples, on_cpu=self.on_cpu)
        if counter.head is not None:
            graph = replace(graph, beside=head_room(self.budget, on_cpu=self.on_cpu).beyond)
        setting, changed = self._choose(job, graph, counter.head)
        return CountedJob(counter.count(setting.microbatch), graph, counter.head), setting, changed

    def fit(self, job: JobSizes, counted: CountedJob, microbatch: int | None) -> Setting:
        """Fit a counted job with a given micro-batch."""
        curvature = self.curvature(job, counted.graph.working(microbatch), counted.head)
        return self._fit(job, counted.graph, microbatch, curvature)

    def _fit(self, job: JobSizes, graph: GraphSize, microbatch: int | None, curvature: CurvaturePlan | None) -> Setting:
        return fit(job, graph, self.budget, microbatch, curvature, on_cpu=self.on_cpu, rooms=self.rooms)

    def curvature(self, job: JobSizes, working: int, head: CountedHead | None) -> CurvaturePlan | None:
        """Say what the engine will do about the head's curvature in this job."""
        settings = job.settings
        if head is None or not settings.head_curvature:
            return None
        sizes = HeadSizes(
            tokens=round(head_tokens(head.tokens, job.samples) * job.batches),
            hidden_size=head.hidden_size,
            classes=head.classes,
            products=products_past_head(job.products, head.blocks),
        )
        left = spare(working, self.budget, job.streams.largest)
        return choose_curvature(sizes, settings.precision, self.budget, left, free_disk(), on_cpu=self.on_cpu)

    def _choose(self, job: JobSizes, graph: GraphSize, head: CountedHead | None) -> tuple[Setting, list[str]]:
        """Take the engine's own setting where it fits; else half the basis."""
        settings = job.settings
        largest = choose_microbatch(graph, job.samples, self.budget, settings.microbatch)
        if settings.basis == AUTO:
            return self._choose_basis(job, graph, head, largest)
        check_place(settings.lanczos.kept, on_cpu=self.on_cpu)
        halved = settings.basis == "fp32" and settings.precision != "fp64" and settings.lanczos.kept is not None
        reasons: list[OutOfMemoryError] = []
        for name in (settings.basis, "bf16") if halved else (settings.basis,):
            tried = job.with_settings(basis=name)
            size = make_room(graph, largest, self.budget, tried.streams.largest)
            curvature = self.curvature(tried, graph.working(size), head)
            try:
                setting = self._fit(tried, graph, size, curvature)
            except OutOfMemoryError as error:
                reasons.append(error)
                continue
            return setting, [] if name == settings.basis else ["an fp32 basis does not fit: pass basis='bf16'"]
        raise reasons[-1]

    def _choose_basis(
        self, job: JobSizes, graph: GraphSize, head: CountedHead | None, largest: int | None
    ) -> tuple[Setting, list[str]]:
        """Choose how vectors are kept as the engine does, and the setting with it."""
        for name in LEANEST:
            lean = job.with_settings(basis=name)
            size = make_room(graph, largest, self.budget, lean.streams.largest)
            if spare(graph.working(size), self.budget, lean.streams.largest) >= 0:
                break
        curvature = self.curvature(lean, graph.working(size), head)
        held = 0 if curvature is None else curvature.memory_bytes
        basis = choose_basis(
            lambda name: job.with_settings(basis=name).streams,
            self.budget,
            graph.working(size),
            held,
            self.rooms,
            on_cpu=self.on_cpu,
        )
        chosen = job.with_settings(basis=basis)
        setting, kept = self._fit(chosen, graph, size, curvature), chosen.settings.lanczos.kept
        return setting, [] if kept is None or basis == RESIDENT[0] else [note(basis, kept)]
