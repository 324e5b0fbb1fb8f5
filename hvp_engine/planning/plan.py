"""The public call: ``plan``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hvp_engine.blocks import BlockSpec, Partition, resolve
from hvp_engine.errors import ConfigurationError, OutOfMemoryError
from hvp_engine.krylov.basis import Elsewhere
from hvp_engine.krylov.registry import AUTO
from hvp_engine.krylov.settings import JobSettings, Reorthogonalize
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.operators.registry import operator_named
from hvp_engine.ops.head.room import head_room
from hvp_engine.planning.calibration import calibrate
from hvp_engine.planning.cost import Calibration, Prediction, predict
from hvp_engine.planning.counting import CountedHead, Counts, DataShape, JobCounter, data_shape, meta_copy
from hvp_engine.planning.devices import Device, gpu, measure_cpu
from hvp_engine.planning.memory import ModelSizes, predict_memory
from hvp_engine.planning.planned_data import is_meta, scaled
from hvp_engine.planning.processes import checked_processes, share, with_sums
from hvp_engine.planning.report import Alternative, JobPlan
from hvp_engine.planning.setting import JobSizes, Setting, fit
from hvp_engine.planning.shapes import NATIVE, Backends
from hvp_engine.problem.checks import check_ingredients
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision, product_dtype
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
    usable,
)
from hvp_engine.scheduling.storages import LEANEST, RESIDENT, check_place, choose_basis, note, rooms
from hvp_engine.system import memory as device_memory
from hvp_engine.system.failures import failures_in_words
from hvp_engine.system.memory import free_disk


@failures_in_words("the job was counted")
@torch.inference_mode(False)
@torch.enable_grad()
def plan(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    device: str = "cpu",
    steps: int | None = None,
    probes: int | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    operator: str = "hessian",
    precision: Precision = "fp32",
    basis: str = "fp32",
    reorthogonalize: Reorthogonalize = "full",
    microbatch: int | None = None,
    memory: int | None = None,
    head_curvature: bool = True,
    batches: int | None = None,
    tokens: int | None = None,
    processes: int = 1,
) -> JobPlan:
    """Predict what :func:`hvp_engine.slq` with the same arguments costs on a device, without running it.

    The model runs on tensors without data, so that one built under ``torch.device("meta")`` will do: matrix products
    are counted operation by operation, memory traffic too, and second backward passes stop at their block as the
    engine's do (:mod:`hvp_engine.planning.counting`). Each operation takes the time of the ceiling that it touches
    (Williams, Waterman & Patterson 2009, roofline), and a product on a GPU at least what the host takes to start its
    kernels. GPUs are predicted from data sheets and efficiencies, estimated or measured, as the plan says. On
    ``"cpu"`` the ceilings of this machine are measured, and, where the model has weights, one gradient graph and a few
    products of the model itself, which takes seconds. An adaptive job has two prices: what the blocks are expected to
    take (:mod:`hvp_engine.scheduling.expected`), and, as ``worst``, all steps and probes that they may take.

    Args:
        model: The network, real or on the meta device; never changed.
        loss: As for :func:`hvp_engine.slq`; it must not read values (``.item()``).
        blocks: As for :func:`hvp_engine.slq`.
        data: Batches, real or on the meta device; only their shapes count.
        device: ``"cpu"`` or a GPU of :data:`hvp_engine.planning.devices.GPUS`.
        steps: As for :func:`hvp_engine.slq`, as are the next two.
        probes: Random vectors per block.
        tolerance: What an adaptive job has to reach.
        operator: The matrix, one of :data:`hvp_engine.operators.registry.OPERATORS`. A diagonal (``precondition``)
            costs next to nothing.
        precision: Arithmetic of the products.
        basis: As for :func:`hvp_engine.slq`; ``"bf16"`` is taken where ``"fp32"`` does not fit. Vectors that are kept
            elsewhere are read from there in every step; of a file only what does not fit into memory.
        reorthogonalize: ``"full"``, ``"selective"`` or ``"none"``.
        microbatch: Samples differentiated at once; None chooses.
        memory: Bytes for graphs and vectors; None takes 80 % of what the device has beside the model.
        head_curvature: As for :func:`hvp_engine.slq`.
        batches: Number of batches of the largest one's size to plan for, in place of those in ``data``.
        tokens: The same in entries of a batch's first tensor (token ids, for a language model).
        processes: How many processes share the job, each on a device of its own; the plan is that of the one with most
            to do, arranged as ``slq(..., distributed="auto")`` does it.

    Returns:
        The plan; ``print`` shows it.

    Raises:
        ConfigurationError: An argument is out of range or of the wrong kind, or the device lacks the precision.
        OutOfMemoryError: Not even one sample, or one stream, fits; the message says what would.
        ObjectiveError: The model or the loss cannot run without data.
        BlockError: The blocks do not fit the model.
    """
    kind = operator_named(operator)
    settings = JobSettings(
        steps=steps,  # type: ignore[arg-type]  # numbers once they are settings
        probes=probes,  # type: ignore[arg-type]
        tolerance=tolerance,
        precision=precision,
        reorthogonalize=reorthogonalize,
        basis=basis,
        microbatch=microbatch,
        memory=memory,
        head_curvature=head_curvature and kind.uses_head_curvature,
    )
    check_ingredients(model, loss, data)
    target = _gpu(device, precision)
    shell = meta_copy(model, settings.dtype)
    partition = resolve(shell, blocks)
    settings.check_blocks(len(partition.blocks))
    shape = scaled(data_shape(data, settings.dtype), batches, tokens)
    sizes = ModelSizes.of(model, shell, partition.parameters)
    job = JobSizes(partition.numel, settings, shape.samples, shape.batches, sizes.parameters, sizes.gradient)
    budget = usable(memory, _free(target, job.parameters))
    asked = _Asked(shell, loss, shape, partition, kind, budget, on_cpu=target is None, backends=_kernels(target))
    axes, job, (counted, setting, changed) = asked.shared(job, processes)
    machine = target or measure_cpu(precision, counted.largest)
    real = target is None and not is_meta(data) and not any(p.is_meta for p in model.parameters())
    calibration = calibrate(kind, model, loss, blocks, data, counted.counts, setting, machine) if real else None
    sources = _Sources(asked, counted, job.decided(setting.basis), axes, machine, calibration)
    return JobPlan(
        device=machine,
        job=sources.job,
        setting=setting,
        prediction=sources.predict(setting),
        worst=None if settings.targets is None else sources.at_most(setting),
        memory_needs=predict_memory(counted.counts, counted.graph, sources.job, setting, sizes, on_cpu=target is None),
        calibrated=calibration is not None,
        alternatives=tuple(_alternatives(sources, setting)),
        notes=(*partition.notes, *changed, *_decided(operator, setting)),
        processes=axes,
    )


def _free(target: Device | None, parameters: int) -> int:
    """Return the bytes for graphs and vectors that a device, or this machine, has beside the model."""
    return device_memory.free_share(target.room(parameters)) if target else device_memory.budget(torch.device("cpu"))


def _decided(operator: str, setting: Setting) -> Iterable[str]:
    """Say what is otherwise than in most plans."""
    if operator != HessianOperator.matrix:
        yield f"the matrix is operator={operator!r}"
    if setting.curvature is not None:
        yield f"the head's curvature is formed once: {setting.curvature}"


def _kernels(target: Device | None) -> Callable[[Precision], Backends]:
    """Say whose kernels a device has, by precision."""
    return _natives if target is None else target.backends


def _natives(precision: Precision) -> Backends:
    """Say whose kernels this machine has, whatever the precision."""
    return NATIVE


@dataclass(frozen=True)
class _Counted:
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
class _Asked:
    """A job as it was asked for, to be counted and fitted at any precision."""

    model: nn.Module
    loss: Loss
    data: DataShape
    partition: Partition
    operator: type[CurvatureOperator]
    budget: int
    on_cpu: bool
    backends: Callable[[Precision], Backends] = _natives

    @property
    def rooms(self) -> dict[Elsewhere, float] | None:
        """Bytes for vectors that are kept elsewhere; None where that is another machine."""
        return rooms() if self.on_cpu else None

    def shared(self, job: JobSizes, processes: int) -> tuple[Axes, JobSizes, tuple[_Counted, Setting, list[str]]]:
        """Share a job among processes; return how, the job of the one with most to do, and what :meth:`count` says."""
        found = self.count(job)
        if checked_processes(processes) == 1:
            return ONE, job, found
        counted, setting, _ = found
        axes, part = share(job.decided(setting.basis), setting, counted.graph, processes)
        return axes, part, self.count(part)

    def count(self, job: JobSizes) -> tuple[_Counted, Setting, list[str]]:
        """Count a micro-batch of the size that fits; return that, the setting, and what was changed in it."""
        precision = job.settings.precision
        kernels = self.backends(precision)
        counter = JobCounter(self.model, self.loss, self.data, self.partition, precision, self.operator, kernels)
        graph = counter.graph_size(job.samples, on_cpu=self.on_cpu)
        if counter.head is not None:
            graph = replace(graph, beside=head_room(self.budget, on_cpu=self.on_cpu).beyond)
        setting, changed = self._choose(job, graph, counter.head)
        return _Counted(counter.count(setting.microbatch), graph, counter.head), setting, changed

    def fit(self, job: JobSizes, counted: _Counted, microbatch: int | None) -> Setting:
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


@dataclass(frozen=True)
class _Sources:
    """What predictions for one job and device start from."""

    asked: _Asked
    counted: _Counted
    job: JobSizes
    axes: Axes
    machine: Device
    calibration: Calibration | None

    def fit(self, microbatch: int | None) -> Setting:
        """Fit the job with a given micro-batch."""
        return self.asked.fit(self.job, self.counted, microbatch)

    def predict(self, setting: Setting) -> Prediction:
        """Predict a setting, as the engine will run it."""
        return self._priced(self.job, setting)

    def at_most(self, setting: Setting) -> Prediction:
        """Predict an adaptive job in which every block takes all that it may, set up as for what is expected."""
        job, counted = replace(self.job, at_most=True), self.counted
        whole = fit(
            job,
            counted.graph,
            setting.budget,
            setting.microbatch,
            setting.curvature,
            on_cpu=self.asked.on_cpu,
            rooms=self.asked.rooms,
        )
        return self._priced(job, whole)

    def _priced(self, job: JobSizes, setting: Setting) -> Prediction:
        own = predict(self.counted.counts, job, setting, self.machine, self.calibration)
        return with_sums(own, job, self.axes, self.machine)


def _gpu(device: str, precision: Precision) -> Device | None:
    """Look a device up; None is this machine."""
    target = None if device == "cpu" else gpu(device)
    if target is not None and not target.supports(precision):
        raise ConfigurationError(
            f"{device} has no {precision} arithmetic that the engine uses; choose from {', '.join(target.peak)}."
        )
    return target


def _alternatives(sources: _Sources, setting: Setting) -> Iterable[Alternative]:
    """Yield other ways to run the job: precisions and basis dtypes of a GPU, head curvature, the ceilings."""
    machine, job = sources.machine, sources.job
    precision = job.settings.precision
    if precision != "fp64" and job.settings.lanczos.kept is not None:
        yield from _other_bases(sources, setting.microbatch, {setting.basis})
        known = {product_dtype(precision): (sources.counted, setting)}  # fp32 and TF32 count the same
        for other in [] if machine.measured else [p for p in machine.peak if p not in ("fp64", precision)]:
            changed = job.with_settings(precision=other, basis=setting.basis)
            dtype = product_dtype(other)
            try:
                if dtype not in known:
                    counted, chosen, _ = sources.asked.count(changed)
                    known[dtype] = counted, chosen
            except OutOfMemoryError:
                yield Alternative(f"precision {other}", None, None, "does not fit")
                continue
            counted, chosen = known[dtype]
            yield from _other_bases(replace(sources, counted=counted, job=changed), chosen.microbatch, set())
    if setting.curvature is not None:
        plain = replace(sources, job=job.with_settings(head_curvature=False, basis=setting.basis))
        found = plain.predict(plain.fit(setting.microbatch))
        yield Alternative("without head curvature", found.flop, found.seconds, "pass head_curvature=False")
    if not machine.measured:
        found = replace(sources, machine=machine.ideal()).predict(setting)
        yield Alternative("at the data sheet's ceilings", found.flop, found.seconds, "no program can be faster")


def _other_bases(sources: _Sources, microbatch: int | None, taken: set[str]) -> Iterable[Alternative]:
    """Yield a counted job with every storage in the device's memory but those taken."""
    for basis in RESIDENT:
        if basis in taken:
            continue
        tried = replace(sources, job=sources.job.with_settings(basis=basis))
        label = f"precision {tried.job.settings.precision}, basis {basis}"
        try:
            setting = tried.fit(microbatch)
        except OutOfMemoryError:
            yield Alternative(label, None, None, "does not fit")
            continue
        found = tried.predict(setting)
        samples = "" if microbatch is None else f", micro-batches of {microbatch}"
        yield Alternative(label, found.flop, found.seconds, f"{len(setting.waves)} waves{samples}")
