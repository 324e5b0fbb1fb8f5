"""What the doctor found, for people and for programs."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hvp_engine.errors import printable
from hvp_engine.system.formatting import abbreviate, format_bytes, format_count, format_number, format_time

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
_STYLE = {"error": "bold red", "warning": "yellow", "note": "dim"}
_SHOWN_BLOCKS = 12  # of a long table only the worst are printed; to_dict() has all


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor has to say.

    Attributes:
        severity: "error" makes the Hessian wrong, undefined or impossible to compute; "warning" may change what it
            means; "note" is for information.
        code: Stable name of the kind of finding, for programs.
        message: What is the matter, in plain words.
        module: Path of the module in the model, "" for the model itself; None where no module is to blame.
        line: "file:line" of the user's code; None where unknown.
        fix: What to do about it; "" where there is nothing to do.
    """

    severity: Severity
    code: str
    message: str
    module: str | None = None
    line: str | None = None
    fix: str = ""

    @property
    def where(self) -> str:
        """Module and source line in words, "" where neither is known."""
        module = None if self.module is None else f"module {self.module!r}" if self.module else "the model itself"
        return ", ".join(part for part in (module, self.line) if part)


@dataclass(frozen=True)
class BlockCheck:
    """What the tests of one diagonal block measured; see :class:`hvp_engine.operators.derivative_check.Verification`.

    Attributes:
        name: The block.
        numel: Its size.
        dtype: Arithmetic of the tests.
        asymmetry: abs(u'Hv - v'Hu) / ||Hv||; nan without curvature.
        finite_difference: ||(difference of gradients) - Hv|| / ||Hv||; nan without curvature.
        curvature: ||Hv|| for a random unit vector v.
        wrong: Whether an error is too large.
    """

    name: str
    numel: int
    dtype: str
    asymmetry: float
    finite_difference: float
    curvature: float
    wrong: bool


@dataclass(frozen=True)
class Cost:
    """Time and memory of products at one micro-batch size, measured.

    Attributes:
        microbatch: Samples differentiated at once; None where the batch cannot be split.
        graph_seconds: Forward pass and first backward pass.
        hvp_seconds: One product with one block, mean over the blocks measured.
        graph_bytes: What autograd keeps of the graph.
        peak_bytes: Largest increase of memory while building the graph and multiplying; None where unknown.
    """

    microbatch: int | None
    graph_seconds: float
    hvp_seconds: float
    graph_bytes: int
    peak_bytes: int | None


@dataclass
class Diagnosis:
    """What the doctor reports: all findings, and what was measured.

    Attributes:
        findings: Errors first, then warnings, then notes.
        blocks: Tests of the second derivative, one per block.
        costs: Time and memory, one row per micro-batch size.
        replaced: Operations of the model that run as fused, twice-differentiable ones.
        samples: Samples in the data; None where they were not all counted.
        block_count: Blocks of the job.
        seconds: What the examination took.
    """

    findings: list[Finding] = field(default_factory=list)
    blocks: list[BlockCheck] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    samples: int | None = None
    block_count: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing was found that makes the Hessian wrong: no finding is an error."""
        return not self.of("error")

    def of(self, severity: Severity) -> list[Finding]:
        """List the findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def job_seconds(self, steps: int = 100, probes: int = 10) -> float | None:
        """Estimate the time of a job over all blocks, extrapolated from the fastest micro-batch size.

        Args:
            steps: Lanczos steps.
            probes: Random vectors per block.

        Returns:
            Seconds for the products, graphs built once; None where nothing was measured.
        """
        per_sample = [(cost.hvp_seconds, cost.graph_seconds, cost.microbatch or self.samples) for cost in self.costs]
        times = [
            (self.samples / size) * (hvp * self.block_count * probes * steps + graph)
            for hvp, graph, size in per_sample
            if size and self.samples
        ]
        return min(times, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data that JSON can hold; a measurement that does not apply (nan) is None."""
        plain: dict[str, Any] = {
            "ok": self.ok,
            "findings": [{**asdict(finding), "where": finding.where} for finding in self.findings],
            "blocks": [asdict(check) for check in self.blocks],
            "costs": [asdict(cost) for cost in self.costs],
            "replaced": list(self.replaced),
            "samples": self.samples,
            "block_count": self.block_count,
            "job_seconds": self.job_seconds(),
            "seconds": round(self.seconds, 3),
        }
        cleaned: dict[str, Any] = _without_nan(plain)
        return cleaned

    def to_json(self) -> str:
        """Write the report as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def __str__(self) -> str:
        """Write the report as plain text."""
        buffer = io.StringIO()
        Console(file=buffer, width=120, color_system=None, legacy_windows=False).print(self)
        return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())

    def __rich__(self) -> RenderableType:
        """Lay the report out for a terminal."""
        parts: list[RenderableType] = [_verdict(self)]
        parts += [_described(finding) for finding in self.findings]
        if self.blocks:
            parts += [Text(), _block_table(self.blocks)]
        if self.costs:
            parts += [Text(), _cost_table(self.costs)]
        seconds = self.job_seconds()
        if seconds is not None:
            parts.append(
                Text(
                    f"A job of 100 steps x 10 probes over {self.block_count} block(s) and {self.samples} samples needs "
                    f"about {format_time(seconds)} of products."
                )
            )
        parts.append(Text(f"Examined in {format_time(self.seconds)}."))
        return Group(*parts)


def _verdict(report: Diagnosis) -> Text:
    errors, warnings = len(report.of("error")), len(report.of("warning"))
    if errors:
        return Text(f"Not fit: {errors} error(s), {warnings} warning(s).", style=_STYLE["error"])
    more = f" {warnings} warning(s)." if warnings else ""
    return Text(f"Fit: nothing found that makes the Hessian wrong.{more}", style="bold green")


def _described(finding: Finding) -> Text:
    text = Text(f"{finding.severity:8}", style=_STYLE[finding.severity])
    text.append(f"{finding.code}: ", style="bold")
    text.append(printable(finding.message, keep="\n"), style="default")
    for label, value in (("where", finding.where), ("fix", finding.fix)):
        if value:
            text.append(f"\n        {label}: {printable(value, keep=chr(10))}", style="default")
    return text


def _block_table(checks: list[BlockCheck]) -> Table:
    worst = sorted(checks, key=lambda check: (not check.wrong, -_number(check.finite_difference)))
    shown = checks if len(checks) <= _SHOWN_BLOCKS else worst[:_SHOWN_BLOCKS]
    title = "" if len(shown) == len(checks) else f" (the worst {len(shown)} of {len(checks)})"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(f"block{title}", overflow="fold")
    for name in ("parameters", "asymmetry", "finite\ndifference", "||Hv||", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for name, check in zip(abbreviate([check.name for check in shown]), shown, strict=True):
        numbers = (format_number(v, 2) for v in (check.asymmetry, check.finite_difference, check.curvature))
        verdict = "wrong" if check.wrong else "flat" if not check.curvature else "right"
        table.add_row(Text(name), format_count(check.numel), *numbers, verdict)
    return table


def _cost_table(costs: list[Cost]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("micro-batch", "graph", "one HVP", "graph keeps", "peak memory"):
        table.add_column(name, justify="right")
    for cost in costs:
        table.add_row(
            "whole" if cost.microbatch is None else str(cost.microbatch),
            format_time(cost.graph_seconds),
            format_time(cost.hvp_seconds),
            format_bytes(cost.graph_bytes),
            "–" if cost.peak_bytes is None else format_bytes(cost.peak_bytes),
        )
    return table


def _number(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
