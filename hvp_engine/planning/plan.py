"""The public call: ``plan``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from hvp_engine.blocks import BlockSpec, resolve
from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.settings import JobSettings, Reorthogonalize
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.operators.registry import operator_named
from hvp_engine.planning.alternatives import Sources, alternatives
from hvp_engine.planning.asked import AskedJob, CountedJob, natives
from hvp_engine.planning.calibration import TOO_LONG, calibrate
from hvp_engine.planning.cost import Calibration
from hvp_engine.planning.counting import data_shape, meta_copy
from hvp_engine.planning.devices import Device, gpu, measure_cpu
from hvp_engine.planning.memory import MemoryPrediction, ModelSizes, predict_memory
from hvp_engine.planning.planned_data import is_meta, scaled
from hvp_engine.planning.report import JobPlan
from hvp_engine.planning.setting import JobSizes, Setting
from hvp_engine.planning.shapes import Backends
from hvp_engine.problem.checks import check_ingredients
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision
from hvp_engine.scheduling.policy import usable
from hvp_engine.system import memory as device_memory
from hvp_engine.system.failures import failures_in_words
from hvp_engine.system.phases import phase, shows_phases


@shows_phases
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
    progress: bool | None = None,
) -> JobPlan:
    """Predict what :func:`hvp_engine.slq` with the same arguments costs on a device, without running it.

    The model runs on tensors without data, so that one built under ``torch.device("meta")`` will do: matrix products
    are counted operation by operation, memory traffic too, and second backward passes stop at their block as the
    engine's do (:mod:`hvp_engine.planning.counting`); what layers of one form do is counted once
    (:mod:`hvp_engine.planning.replay`), so that models of any size take seconds. Each operation takes the time of the
    ceiling that it touches (Williams, Waterman & Patterson 2009, roofline), and a product on a GPU at least what the
    host takes to start its kernels. GPUs are predicted from data sheets and efficiencies, estimated or measured, as the
    plan says. On ``"cpu"`` the ceilings of this machine are measured, and, where the model has weights, one gradient
    graph and a few products of the model itself, of fewer samples where a micro-batch's would take more than seconds.
    An adaptive job has two prices: what blocks are expected to take (:mod:`hvp_engine.scheduling.expected`), and, as
    ``worst``, all steps and probes that they may take.

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
        progress: True shows what is being counted or measured, False hides it, None shows it on a terminal.

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
    asked = AskedJob(shell, loss, shape, partition, kind, budget, on_cpu=target is None, backends=_backends(target))
    axes, job, (counted, setting, changed) = asked.shared(job, processes)
    machine = target or _this_machine(precision, counted)
    real = target is None and not is_meta(data) and not any(p.is_meta for p in model.parameters())
    calibration = calibrate(kind, model, loss, blocks, data, counted.counts, setting, machine) if real else None
    sources = Sources(asked, counted, job.decided(setting.basis), axes, machine, calibration)
    needs = predict_memory(counted.counts, counted.graph, sources.job, setting, sizes, on_cpu=target is None)
    notes = (*partition.notes, *changed, *_left_out(real, calibration), *_decided(operator, setting))
    return _plan_of(sources, setting, needs, notes)


def _plan_of(sources: Sources, setting: Setting, needs: MemoryPrediction, notes: tuple[str, ...]) -> JobPlan:
    """Price a setting, and other ways to run the job."""
    return JobPlan(
        device=sources.machine,
        job=sources.job,
        setting=setting,
        prediction=sources.predict(setting),
        worst=None if sources.job.settings.targets is None else sources.at_most(setting),
        memory_needs=needs,
        calibrated=sources.calibration is not None,
        alternatives=tuple(alternatives(sources, setting)),
        notes=notes,
        processes=sources.axes,
    )


def _backends(target: Device | None) -> Callable[[Precision], Backends]:
    """Say whose kernels a device has, by precision."""
    return natives if target is None else target.backends


def _left_out(real: bool, calibration: Calibration | None) -> list[str]:
    """Say why nothing was measured where it could be."""
    return [TOO_LONG] if real and calibration is None else []


def _this_machine(precision: Precision, counted: CountedJob) -> Device:
    with phase("measuring this machine"):
        return measure_cpu(precision, counted.largest)


def _free(target: Device | None, parameters: int) -> int:
    """Return the bytes for graphs and vectors that a device, or this machine, has beside the model."""
    return device_memory.free_share(target.room(parameters)) if target else device_memory.budget(torch.device("cpu"))


def _decided(operator: str, setting: Setting) -> Iterable[str]:
    """Say what is otherwise than in most plans."""
    if operator != HessianOperator.matrix:
        yield f"the matrix is operator={operator!r}"
    if setting.curvature is not None:
        yield f"the head's curvature is formed once: {setting.curvature}"


def _gpu(device: str, precision: Precision) -> Device | None:
    """Look a device up; None is this machine."""
    target = None if device == "cpu" else gpu(device)
    if target is not None and not target.supports(precision):
        raise ConfigurationError(
            f"{device} has no {precision} arithmetic that the engine uses; choose from {', '.join(target.peak)}."
        )
    return target
