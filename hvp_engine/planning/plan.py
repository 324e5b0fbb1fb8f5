"""The public call: ``plan``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn

from hvp_engine.blocks import BlockSpec, Partition, resolve
from hvp_engine.errors import ConfigurationError, OutOfMemoryError
from hvp_engine.krylov.settings import check_arguments
from hvp_engine.operators.head.store import CurvaturePlan
from hvp_engine.planning.calibration import calibrate
from hvp_engine.planning.cost import Calibration, Prediction, predict
from hvp_engine.planning.counting import Counts, DataShape, JobCounter, data_shape, meta_copy
from hvp_engine.planning.devices import Device, gpu, measure_cpu
from hvp_engine.planning.head_cost import planned_curvature
from hvp_engine.planning.report import Alternative, JobPlan
from hvp_engine.planning.setting import BasisName, GraphSize, Job, Setting, choose_microbatch, fit
from hvp_engine.problem import batches as batch_tools
from hvp_engine.problem.checks import check_ingredients
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision, check_precision, product_dtype, working_dtype
from hvp_engine.system import memory as device_memory


def plan(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    device: str = "cpu",
    steps: int = 100,
    probes: int = 10,
    precision: Precision = "fp32",
    basis: BasisName = "fp32",
    reorthogonalize: Literal["full", "none"] = "full",
    microbatch: int | None = None,
    memory: int | None = None,
    batches: int | None = None,
    tokens: int | None = None,
) -> JobPlan:
    """Predict what :func:`hvp_engine.slq` with the same arguments costs on a device, without running it.

    The model runs on tensors without data, so that one built under ``torch.device("meta")`` will do: matrix products
    are counted operation by operation, memory traffic too, and second backward passes stop at their block as the
    engine's do (:mod:`hvp_engine.planning.counting`). Each operation takes the time of the ceiling that it touches
    (Williams, Waterman & Patterson 2009, roofline). GPUs are predicted from data sheets and stated efficiencies. On
    ``"cpu"`` the ceilings of this machine are measured, and, where the model has weights, one gradient graph and a few
    products of the model itself, which takes seconds.

    Args:
        model: The network, real or on the meta device; never changed.
        loss: As for :func:`hvp_engine.slq`; it must not read values (``.item()``).
        blocks: As for :func:`hvp_engine.slq`.
        data: Batches, real or on the meta device; only their shapes count.
        device: ``"cpu"`` or a GPU of :data:`hvp_engine.planning.devices.GPUS`.
        steps: Lanczos steps.
        probes: Random vectors per block.
        precision: Arithmetic of the products.
        basis: Dtype of the kept vectors; ``"bf16"`` is taken where ``"fp32"`` does not fit.
        reorthogonalize: ``"full"`` or ``"none"``.
        microbatch: Samples differentiated at once; None chooses.
        memory: Bytes for graphs and vectors; None takes 80 % of what the device has beside the model.
        batches: Number of batches of the largest one's size to plan for, in place of those in ``data``.
        tokens: The same in entries of a batch's first tensor (token ids, for a language model).

    Returns:
        The plan; ``print`` shows it.

    Raises:
        ConfigurationError: An argument is out of range or of the wrong kind, or the device lacks the precision.
        OutOfMemoryError: No setting fits; the message says what would.
        ObjectiveError: The model or the loss cannot run without data.
        BlockError: The blocks do not fit the model.
    """
    check_arguments(steps, probes, reorthogonalize, basis)
    check_precision(precision)
    check_ingredients(model, loss, data)
    for name, value in (("microbatch", microbatch), ("memory", memory)):
        if value is not None and value < 1:
            raise ConfigurationError(f"{name}={value} must be at least 1; leave it out to let the planner choose.")
    target = None if device == "cpu" else gpu(device)
    if target is not None and not target.supports(precision):
        raise ConfigurationError(
            f"{device} has no {precision} arithmetic that the engine uses; choose from {', '.join(target.peak)}."
        )
    dtype = working_dtype(precision)
    shell = meta_copy(model, dtype)
    partition = resolve(shell, blocks)
    shape = _scaled(data_shape(data, dtype), batches, tokens)
    parameters = sum(t.nbytes for t in (*shell.parameters(), *shell.buffers()))
    numel = {name: block.numel for name, block in partition.blocks.items()}
    job = Job(numel, steps, probes, precision, reorthogonalize, shape.samples, shape.batches, parameters)
    room = device_memory.free_share(target.room(parameters)) if target else device_memory.budget(torch.device("cpu"))
    budget = room if memory is None else memory
    asked = _Asked(shell, loss, shape, partition, budget, microbatch, on_cpu=target is None)
    counts, graph, setting, changed = asked.counted(job, basis)
    machine = target or measure_cpu(precision, max(counts.products, key=lambda key: counts.products[key], default=None))
    calibration = None
    real = not any(p.is_meta for p in model.parameters()) and not _is_meta(data)
    if target is None and real:
        calibration = calibrate(model, loss, blocks, data, counts, setting, machine)
    sources = _Sources(counts, job, graph, machine, calibration)
    prediction = sources.predict(setting)
    curvature = sources.curvature(setting)
    if curvature is not None:
        changed.append(f"the head's curvature is formed once: {curvature}")
    return JobPlan(
        device=machine,
        job=job,
        setting=setting,
        prediction=prediction,
        calibrated=calibration is not None,
        alternatives=tuple(_alternatives(asked, sources, setting)),
        notes=(*partition.notes, *changed),
    )


@dataclass(frozen=True)
class _Asked:
    """A job as it was asked for, to be counted at any precision."""

    model: nn.Module
    loss: Loss
    data: DataShape
    partition: Partition
    budget: int
    microbatch: int | None
    on_cpu: bool

    def counted(self, job: Job, basis: BasisName) -> tuple[Counts, GraphSize, Setting, list[str]]:
        """Work of a micro-batch of the size that fits, the sizes of graphs, the setting, and what was changed in it."""
        counter = JobCounter(self.model, self.loss, self.data, self.partition, job.precision)
        graph = _graph_size(counter, job.samples)
        setting, changed = _choose(job, graph, self.budget, basis, self.microbatch, on_cpu=self.on_cpu)
        return counter.count(setting.microbatch), graph, setting, changed


@dataclass(frozen=True)
class _Sources:
    """What predictions for one job and device start from."""

    counts: Counts
    job: Job
    graph: GraphSize
    machine: Device
    calibration: Calibration | None

    def curvature(self, setting: Setting) -> CurvaturePlan | None:
        """What the engine will do about the head's curvature."""
        return planned_curvature(self.counts, self.job, setting, on_cpu=self.machine.measured)

    def predict(self, setting: Setting) -> Prediction:
        """Predict a setting, as the engine will run it."""
        return self.predict_with(setting, self.curvature(setting))

    def predict_with(self, setting: Setting, curvature: CurvaturePlan | None) -> Prediction:
        """Predict a setting with or without the head's curvature."""
        return predict(self.counts, self.job, setting, self.machine, self.calibration, curvature=curvature)


def _graph_size(counter: JobCounter, samples: int | None) -> GraphSize:
    """From graphs of one and two samples, as the engine's scheduler measures it."""
    if samples is None:
        return GraphSize(float(counter.graph_bytes(None)), 0.0)
    one = counter.graph_bytes(1)
    slope = max(0, counter.graph_bytes(2) - one) if samples > 1 else 0
    return GraphSize(max(0.0, float(one - slope)), float(slope))


def _choose(
    job: Job, graph: GraphSize, budget: int, basis: BasisName, microbatch: int | None, *, on_cpu: bool
) -> tuple[Setting, list[str]]:
    """The engine's own setting where it fits; else smaller micro-batches, then half the basis. And what was changed."""
    largest = choose_microbatch(job, graph, budget, microbatch)
    sizes = [largest]
    while microbatch is None and (size := sizes[-1]) is not None and size > 1:
        sizes.append((size + 1) // 2)
    halved = basis == "fp32" and job.precision != "fp64" and job.reorthogonalize == "full"
    reasons: list[OutOfMemoryError] = []
    for name in (basis, *(("bf16",) if halved else ())):
        for size in sizes:
            try:
                setting = fit(job, graph, budget, name, size, on_cpu=on_cpu)
            except OutOfMemoryError as error:
                reasons.append(error)
                continue
            notes = []
            if size != largest:
                notes.append(f"Lanczos vectors fit beside smaller graphs only: pass microbatch={size}")
            if name != basis:
                notes.append("an fp32 basis does not fit: pass basis='bf16'")
            return setting, notes
    raise reasons[-1]


def _alternatives(asked: _Asked, sources: _Sources, setting: Setting) -> Iterable[Alternative]:
    """Other ways to run the job: precisions and basis dtypes of a GPU, head curvature, the ceilings themselves."""
    machine, job = sources.machine, sources.job
    on_cpu = machine.measured
    if job.precision != "fp64" and job.reorthogonalize == "full":
        yield from _other_bases(sources, setting, {setting.basis})
        known = {product_dtype(job.precision): (sources, setting)}  # what is counted is the same for fp32 and TF32
        for precision in [] if on_cpu else [p for p in machine.peak if p not in ("fp64", job.precision)]:
            other, dtype = replace(job, precision=precision), product_dtype(precision)
            try:
                if dtype not in known:
                    counts, graph, chosen, _ = asked.counted(other, setting.basis)
                    known[dtype] = (replace(sources, counts=counts, graph=graph), chosen)
            except OutOfMemoryError:
                yield Alternative(f"precision {precision}", None, None, "does not fit")
                continue
            counted, chosen = known[dtype]
            yield from _other_bases(replace(counted, job=other), replace(chosen, precision=precision), set())
    if sources.curvature(setting) is not None:
        found = sources.predict_with(setting, None)
        yield Alternative("without head curvature", found.flop, found.seconds, "pass head_curvature=False")
    if not on_cpu:
        ceiling = replace(machine, product_share=dict.fromkeys(machine.peak, 1.0), bandwidth_share=1.0, launch=0.0)
        found = replace(sources, machine=ceiling).predict(setting)
        yield Alternative("at the data sheet's ceilings", found.flop, found.seconds, "no program can be faster")


def _other_bases(sources: _Sources, setting: Setting, taken: set[BasisName]) -> Iterable[Alternative]:
    """A counted job with every dtype of the basis but those taken."""
    for basis in get_args(BasisName):
        if basis in taken:
            continue
        label = f"precision {sources.job.precision}, basis {basis}"
        on_cpu = sources.machine.measured
        try:
            tried = fit(sources.job, sources.graph, setting.budget, basis, setting.microbatch, on_cpu=on_cpu)
        except OutOfMemoryError:
            yield Alternative(label, None, None, "does not fit")
            continue
        found = sources.predict(tried)
        samples = "" if tried.microbatch is None else f", micro-batches of {tried.microbatch}"
        yield Alternative(label, found.flop, found.seconds, f"{len(tried.waves)} waves{samples}")


def _scaled(shape: DataShape, batches: int | None, tokens: int | None) -> DataShape:
    """The data's shape with as many batches as asked for."""
    if batches is None and tokens is None:
        return shape
    if batches is not None and tokens is not None:
        raise ConfigurationError("Give batches or tokens, not both.")
    asked = batches if batches is not None else tokens
    if not isinstance(asked, int) or asked < 1 or shape.largest is None:
        raise ConfigurationError(
            f"batches or tokens is {asked!r}; it must be a whole number of at least 1, for a job with data."
        )
    if tokens is None:
        return replace(shape, batches=float(asked))
    first = batch_tools.tensors(shape.largest)[0].numel()
    return replace(shape, batches=max(asked / first, 1.0 / first))


def _is_meta(data: Iterable[Any] | None) -> bool:
    """Whether the first batch has no contents."""
    if data is None:
        return False
    first = next(iter(data))
    return any(tensor.is_meta for tensor in batch_tools.tensors(first))
