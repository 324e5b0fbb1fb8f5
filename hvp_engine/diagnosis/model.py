"""What a model's modules and parameters tell without running them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import nn

from hvp_engine.blocks import Partition
from hvp_engine.diagnosis.operations import compiled
from hvp_engine.diagnosis.report import Finding
from hvp_engine.problem.checks import active_dropout, training_batchnorm
from hvp_engine.problem.obstacles import obstacles
from hvp_engine.system.formatting import first_names

_NARROW = (torch.bfloat16, torch.float16)
_EVAL = "call model.eval(), or set the probability to 0"


def examine_model(model: nn.Module, partition: Partition) -> list[Finding]:
    """Look for train-mode layers, compiled modules, low-precision, tied and frozen parameters.

    Args:
        model: The network.
        partition: Its blocks.

    Returns:
        One finding per layer or kind of parameter.
    """
    findings = [
        Finding("error", "dropout-active", "Dropout is active: every evaluation draws other numbers.", name, fix=_EVAL)
        for name in active_dropout(model)
    ]
    findings += [
        Finding(
            "error",
            "batchnorm-train",
            "BatchNorm is in train mode: the loss depends on how the data is split, and every evaluation changes the "
            "statistics.",
            name,
            fix="call model.eval()",
        )
        for name in training_batchnorm(model)
    ]
    findings += [
        Finding("error", obstacle.code, obstacle.message, obstacle.module, fix=obstacle.fix)
        for obstacle in obstacles(model)
    ]
    findings += [compiled("A compiled module", name) for name in compiled_modules(model)]
    narrow: dict[torch.dtype, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype in _NARROW:
            narrow.setdefault(parameter.dtype, []).append(name)
    for dtype, names in narrow.items():
        findings.append(
            Finding(
                "warning",
                "low-precision",
                f"{len(names)} parameter(s) are {str(dtype).removeprefix('torch.')} ({first_names(names)}): the "
                "Hessian is that of the rounded values, computed on a float32 copy.",
                fix="load the model in float32 if there is such a checkpoint",
            )
        )
    findings += [
        Finding("note", "tied-parameter" if " is tied to " in note else "frozen-parameter", f"{note}.")
        for note in partition.notes
    ]
    return findings


def compiled_modules(model: nn.Module) -> list[str]:
    """List the modules that run through torch.compile."""
    return [
        name
        for name, module in model.named_modules()
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    ]


@contextlib.contextmanager
def eval_and_eager(model: nn.Module) -> Iterator[None]:
    """Hold dropout and BatchNorm layers in eval mode and compiled modules eager, so that the rest can be examined."""
    training = set(active_dropout(model)) | set(training_batchnorm(model))
    changed = [module for name, module in model.named_modules() if (name or type(module).__name__) in training]
    eager = contextlib.nullcontext()
    if "torch._dynamo" in sys.modules and compiled_modules(model):
        eager = torch.compiler.set_stance("force_eager")
    try:
        for module in changed:
            module.training = False
        with eager:
            yield
    finally:
        for module in changed:
            module.training = True
