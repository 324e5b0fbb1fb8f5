"""The committed results: what a row is called, which facts describe a machine, and the table."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from hvp_engine.config import config

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "results"
_HIDDEN = ("median_s", "size", "device")
Row = dict[str, Any]


def merge(known: dict[str, Any], rows: dict[str, Row], device: torch.device) -> dict[str, Any]:
    """Add the rows of one run, in place of those of the same benchmark, size and device.

    Args:
        known: The results so far: facts of the CPU under "machine", of the GPU under "gpu", rows under "benchmarks".
        rows: By benchmark: seconds and what it noted.
        device: Where they were measured; rows without a device are of the CPU.
    """
    benchmarks = dict(known.get("benchmarks", {}))
    for name, row in rows.items():
        size = f"[{row['size']}]" if "size" in row else ""
        place = "" if device.type == "cpu" else f"[{device.type}]"
        benchmarks[name + size + place] = {**_rounded(row), "device": device.type}
    return {**known, _facts_of(device.type): machine(device), "benchmarks": benchmarks}


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown, with the facts of every device that they were measured on."""
    lines = ["# Benchmark results", ""]
    for device in ("cpu", "cuda"):
        if facts := results.get(_facts_of(device)):
            lines += [f"{device}: " + ", ".join(f"{key} {value}" for key, value in facts.items()) + ".", ""]
    lines += ["| benchmark | device | median (s) | what it shows |", "|---|---|---|---|"]
    for name, row in sorted(results["benchmarks"].items()):
        shown = ", ".join(f"{key} {value}" for key, value in row.items() if key not in _HIDDEN)
        lines.append(f"| `{name}` | {row.get('device', 'cpu')} | {row['median_s']:.4g} | {shown} |")
    return "\n".join(lines) + "\n"


_INSTRUCTIONS = {"AVX-512": "avx512f", "AMX": "amx_bf16"}


def machine(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions and commit; no name of a host or user, no path."""
    versions = {name: version for name, version in config()["versions"].items() if version}
    if device.type != "cuda":
        return {"processor": _processor(), "threads": torch.get_num_threads(), **versions, "commit": commit()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}"
        f"{properties.minor}, {properties.multi_processor_count} multiprocessors)",
        "driver": driver(),
        "CUDA of torch": torch.version.cuda,
        **versions,
        "commit": commit(),
    }


def commit() -> str:
    """Short hash of the checked-out commit, with a plus sign where files have changed; unknown outside of git."""
    return _said("git", "-C", str(HERE), "describe", "--always", "--abbrev=9", "--exclude=*", "--dirty=+")


def driver() -> str:
    """Release of the NVIDIA driver, from its own tool."""
    return asked_of_driver("driver_version")


def asked_of_driver(query: str) -> str:
    """Values of the first card, separated by commas, by the names of `nvidia-smi --help-query-gpu`."""
    return _said("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")


def _said(*command: str) -> str:
    """First line of what a command prints; unknown where it fails."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.partition("\n")[0].strip() or "unknown"


def _facts_of(device_type: str) -> str:
    return "machine" if device_type == "cpu" else "gpu"


def _rounded(row: Row) -> Row:
    digits = {"median_s": lambda value: round(value, 6)}
    return {
        key: digits.get(key, lambda value: float(f"{value:.4g}"))(value) if isinstance(value, float) else value
        for key, value in row.items()
    }


def _processor() -> str:
    """Return its name, and which of the instruction sets it has that times depend on."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    facts = {key.strip(): value.strip() for key, _, value in lines}
    flags = facts.get("flags", "").split()
    sets = [name for name, flag in _INSTRUCTIONS.items() if flag in flags]
    name = facts.get("model name", platform.machine())
    return f"{name} ({', '.join(sets)})" if sets else name
