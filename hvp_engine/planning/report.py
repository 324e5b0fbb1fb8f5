"""A finished plan: the numbers, as JSON and as text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hvp_engine.errors import printable
from hvp_engine.planning.cost import Prediction
from hvp_engine.planning.devices import Device
from hvp_engine.planning.memory import MemoryPrediction
from hvp_engine.planning.parts import PartCost
from hvp_engine.planning.setting import JobSizes, Setting
from hvp_engine.processes.team import ONE, Axes
from hvp_engine.results.words import targets_text
from hvp_engine.system.formatting import format_bytes, format_flop, format_time, format_traffic


@dataclass(frozen=True)
class Alternative:
    """Another way to run the same job.

    Attributes:
        name: What is different.
        flop: Floating-point operations; None where it does not fit.
        seconds: Predicted time; None where it does not fit.
        note: A few words.
    """

    name: str
    flop: float | None
    seconds: float | None
    note: str


@dataclass(frozen=True)
class JobPlan:
    """What a job is predicted to cost, and the setting that fits.

    Attributes:
        device: Ceilings that the times are computed with.
        job: Sizes.
        setting: Micro-batch, precision, basis dtype, streams per pass, waves.
        prediction: Work and time of every part; of an adaptive job what is expected.
        worst: The same where every block takes all that it may; None for a fixed job.
        memory_needs: Bytes in each phase.
        calibrated: Whether passes of this model were measured on this machine.
        alternatives: Other ways to run it.
        notes: Decisions, in plain words.
        processes: How processes share it; the other numbers are of the one with most to do.
    """

    device: Device
    job: JobSizes
    setting: Setting
    prediction: Prediction
    worst: Prediction | None
    memory_needs: MemoryPrediction
    calibrated: bool
    alternatives: tuple[Alternative, ...]
    notes: tuple[str, ...]
    processes: Axes = ONE

    @property
    def seconds(self) -> float:
        """Predicted wall time; of an adaptive job what is expected."""
        return self.prediction.seconds

    @property
    def flop(self) -> float:
        """Floating-point operations of the whole job, likewise."""
        return self.prediction.flop

    @property
    def limit(self) -> str:
        """What the job waits for most: ``"compute"``, ``"bandwidth"``, ``"launch"``, or ``"memory"``.

        ``"memory"`` where streams run in waves and graphs that more memory could share take most of the time.
        """
        parts = self.prediction.parts
        graphs = parts["forward"].seconds + parts["first backward"].seconds
        if len(self.setting.waves) > 1 and graphs > self.seconds / 2:
            return "memory"
        return max(parts.values(), key=lambda part: part.seconds).limit

    @property
    def memory(self) -> dict[str, int]:
        """Bytes per part while the job sweeps."""
        return {"parameters": self.job.parameters, **self.memory_needs.steps}

    @property
    def peak(self) -> int:
        """Bytes by which memory rises above what the process has, its model among that."""
        return self.memory_needs.peak

    def record(self) -> dict[str, Any]:
        """Return the plan as plain data, for JSON."""
        ceilings = asdict(self.device)
        head = self.prediction.head
        return {
            "kind": "predicted",
            "device": self.device.name,
            "calibrated": self.calibrated,
            "ceilings": {key: ceilings[key] for key in ceilings if key != "name"},
            "job": self.job.record(),
            "setting": self.setting.record(),
            "seconds": self.seconds,
            "flop": self.flop,
            "worst": None if self.worst is None else {"seconds": self.worst.seconds, "flop": self.worst.flop},
            "limit": self.limit,
            "parts": {name: asdict(part) for name, part in self.prediction.parts.items()},
            "blocks": {name: asdict(part) for name, part in self.prediction.blocks.items()},
            "head": None if head is None else asdict(head),
            "memory": self.memory,
            "peak": self.peak,
            "phases": self.memory_needs.phases,
            "alternatives": [asdict(alternative) for alternative in self.alternatives],
            "notes": list(self.notes),
            "processes": self.processes._asdict(),
        }

    def summary(self) -> str:
        """Return the plan as text."""
        buffer = io.StringIO()
        Console(file=buffer, width=200, color_system=None, legacy_windows=False).print(self.__rich__())
        return "\n".join(line.rstrip() for line in buffer.getvalue().strip("\n").splitlines())

    def __str__(self) -> str:
        return self.summary()

    def __rich__(self) -> Group:
        """Return tables for a terminal."""
        return Group(*(Text(printable(line)) for line in self._lines()), _parts_table(self), _alternatives_table(self))

    def _products(self) -> str:
        """Say how many products the blocks take."""
        job, settings = self.job, self.job.settings
        ceilings = f"{settings.steps} steps x {settings.probes} probes"
        products = f"{sum(job.products.values()):,} with {len(job.numel)} block(s)"
        if settings.targets is None:
            return f"products: {products}, {ceilings}"
        work = job.work.values()
        targets = targets_text(settings.tolerance)
        streams = [each.probes for each in work if each.probes]
        exact = sum(not each.probes for each in work)
        parts = [f"{_range(streams)} probe(s) of {max(w.steps for w in work)} steps"] if streams else []
        parts += [f"{exact} block(s) exactly"] if exact else []
        return f"products: {products} expected for a tolerance of {targets} ({', '.join(parts)}), at most {ceilings}"

    def _processes(self) -> Iterable[str]:
        """Say how processes share the job, where there are several."""
        groups, parts = self.processes
        if self.processes.size > 1:
            yield (
                f"processes: {groups * parts} such devices, {groups} group(s) of streams x {parts} part(s) of the "
                "data, and the numbers of the one with most to do"
            )

    def _lines(self) -> list[str]:
        setting, device = self.setting, self.device
        reached = device.efficiencies
        source = (
            "this machine's ceilings, measured" if device.measured else f"data sheet, efficiencies {reached.source}"
        )
        source += " and passes of this model, measured" if self.calibrated else ""
        share, streams = reached.of_product("linear", setting.precision), reached.of_bandwidth("elementwise")
        memory = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.memory.items() if size)
        phases = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.memory_needs.phases.items())
        samples = "whole batches" if setting.microbatch is None else f"{setting.microbatch} samples"
        most = "" if self.worst is None else f" expected, {format_time(self.worst.seconds)} at most"
        return [
            f"{device.name}: predicted {format_time(self.seconds)}{most}, {format_flop(self.flop)}, limited by "
            f"{self.limit}",
            self._products(),
            *self._processes(),
            f"from {source}: {format_flop(device.peak[setting.precision])}/s in {setting.precision} at {share:.0%}, "
            f"{format_traffic(device.bandwidth)}/s at {streams:.0%}",
            f"setting: micro-batches of {samples} ({setting.microbatches} per sweep, {setting.kept_graphs} graphs "
            f"kept), precision {setting.precision}, basis {setting.basis}, "
            f"{_range(setting.vectors_per_pass.values())} stream(s) per pass, {len(setting.waves)} wave(s)",
            f"memory: {memory}, of {format_bytes(setting.budget)} usable",
            f"peak: predicted {format_bytes(self.peak)} above the model ({phases})",
            *(f"note: {note}" for note in self.notes),
        ]


def _range(counts: Iterable[int]) -> str:
    """Name the smallest and the largest of some numbers, or the one that all are."""
    low, high = min(counts := list(counts)), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _parts_table(plan: JobPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("part (predicted)", no_wrap=True)
    for title in ("FLOP", "bytes", "time", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("limited by", no_wrap=True)
    rows = dict(plan.prediction.parts)
    if plan.prediction.head is not None:
        rows["  of second backwards: head"] = plan.prediction.head
    for name, part in rows.items():
        table.add_row(Text(name), *_cells(part, plan.seconds))
    return table


def _cells(part: PartCost, whole: float) -> tuple[str, ...]:
    share = f"{part.seconds / whole:.1%}" if whole else ""
    flop = format_flop(part.flop) if part.flop else ""
    size = format_traffic(part.bytes) if part.bytes else ""
    return flop, size, format_time(part.seconds), share, part.limit


def _alternatives_table(plan: JobPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("other settings (predicted)", no_wrap=True)
    for title in ("FLOP", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for other in plan.alternatives:
        flop = "" if other.flop is None else format_flop(other.flop)
        seconds = "" if other.seconds is None else format_time(other.seconds)
        table.add_row(Text(printable(other.name)), flop, seconds, Text(printable(other.note)))
    return table
