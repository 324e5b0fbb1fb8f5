"""What a driver costs at the paper's size: FLOP, memory, and hours on two GPUs, before anything is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hvp_engine.blocks import BlockSpec
from hvp_engine.planning.counting import data_shape, evaluate, meta_copy
from hvp_engine.planning.devices import gpu
from hvp_engine.planning.meter import Meter
from hvp_engine.planning.plan import plan
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision

DEVICES = {"A100": "a100-80gb", "H100": "h100-80gb"}
_UTILISATION = 0.4  # of a card's peak, what training of Transformers commonly reaches; convolutions reach less
_PER_PARAMETER = 16  # bytes: weight, gradient and two moments in fp32
_FORWARD_AND_BACKWARD = 6  # FLOP per parameter and token (Kaplan et al. 2020); attention's products are not in it


@dataclass(frozen=True)
class PlannedPart:
    """One part of a driver's work.

    Attributes:
        what: In words.
        flop: Floating-point operations.
        bytes: Memory at its peak, the model's among it.
        hours: By device, ``"A100"`` and ``"H100"``.
    """

    what: str
    flop: float
    bytes: int
    hours: Mapping[str, float]

    def times(self, count: int, what: str = "") -> PlannedPart:
        """Return the plan of ``count`` such parts one after another, described by ``what`` or as so many times this."""
        hours = {device: count * value for device, value in self.hours.items()}
        return replace(self, what=what or f"{count} times {self.what}", flop=count * self.flop, hours=hours)


def planned_slq(
    what: str,
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec,
    data: Iterable[Any],
    *,
    steps: int = 100,
    probes: int = 10,
    precision: Precision = "fp32",
    batches: int | None = None,
    runs: int = 1,
) -> PlannedPart:
    """Plan one call of :func:`hvp_engine.slq`, or ``runs`` of them one after another.

    Args:
        what: In words.
        model: On the meta device, or real.
        loss: As for ``slq``, as are the next two.
        blocks: The blocks.
        data: Batches, on the meta device or real.
        steps: Lanczos steps.
        probes: Random vectors per block.
        precision: Arithmetic of the products.
        batches: Number of batches to plan for, in place of those in ``data``.
        runs: How many such calls: stages, seeds.

    Raises:
        HvpEngineError: It cannot be planned, or does not fit; the message says why.
    """
    kept = list(data)
    planned = {
        name: plan(
            model,
            loss,
            blocks,
            data=kept,
            device=device,
            steps=steps,
            probes=probes,
            precision=precision,
            batches=batches,
        )
        for name, device in DEVICES.items()
    }
    one = planned["A100"]
    hours = {name: runs * found.seconds / 3600.0 for name, found in planned.items()}
    return PlannedPart(what, runs * one.flop, max(found.peak for found in planned.values()), hours)


def planned_training(what: str, parameters: int, tokens: float, *, precision: Precision = "bf16") -> PlannedPart:
    """Plan the training of a Transformer by its parameters and the tokens that it sees, all steps and runs together.

    Memory is that of weights, gradients and Adam's moments; activations are not in it.
    """
    flop = float(_FORWARD_AND_BACKWARD) * parameters * tokens
    return PlannedPart(what, flop, _PER_PARAMETER * parameters, _hours(flop, precision))


def counted_training(
    what: str, model: nn.Module, loss: Loss, batch: Any, passes: float, *, precision: Precision = "bf16"
) -> PlannedPart:
    """Plan a training by counting one forward and backward pass, for networks that use a weight more than once.

    Args:
        what: In words.
        model: On the meta device, or real.
        loss: ``loss(model, batch)``, which reads no values.
        batch: Of as many samples as one micro-batch has, on the meta device or real.
        passes: How many such passes there are: steps, runs and micro-batches multiplied.
        precision: Arithmetic of the products.

    Raises:
        ObjectiveError: The model or the loss cannot run without data.
    """
    shell = meta_copy(model, torch.float32)
    meter = Meter()
    leaves = [parameter for parameter in shell.parameters() if parameter.requires_grad]
    with meter.part() as work:
        total = evaluate(shell, loss, data_shape([batch], torch.float32).largest)
        torch.autograd.grad(total, leaves, allow_unused=True)
    flop = passes * work.flop
    resident = _PER_PARAMETER * sum(parameter.numel() for parameter in leaves)
    return PlannedPart(what, flop, resident + work.peak, _hours(flop, precision))


def _hours(flop: float, precision: Precision) -> dict[str, float]:
    return {name: flop / (_UTILISATION * gpu(device).peak[precision]) / 3600.0 for name, device in DEVICES.items()}
