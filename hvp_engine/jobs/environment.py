"""What a job runs on, beside itself: another one changes rounding, so that a run folder says which it was."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hvp_engine.kernels import loader
from hvp_engine.kernels.registry import backend_for
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.system.versions import versions

Environment = dict[str, Any]


def environment(operator: CurvatureOperator) -> Environment:
    """Return versions, device, backend, instruction set, threads, the cut of the data and processes, as plain data."""
    device, plan = operator.device, operator.scheduler.plan
    return {
        "versions": versions(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "backend": backend_for(device),
        "instruction_set": loader.native.isa() if loader.missing_reason is None else None,
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "microbatch": plan.microbatch,
        "processes": plan.processes,
    }


def changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Say what differs between two environments; nothing where one of them is not known."""
    if not there:
        return []
    flat = [{**where, **where.get("versions", {})} for where in (there, here)]
    names = [name for name in flat[1] if name != "versions" and flat[0].get(name) != flat[1][name]]
    return [f"{name} {flat[0].get(name)} there, {flat[1][name]} here" for name in names]


def _processor() -> str:
    """Return the name of the processor's model, or of its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
