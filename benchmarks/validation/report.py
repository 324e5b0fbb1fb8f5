"""What a validation found: checks against fp64, times against rooflines, as Markdown or JSON."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Check:
    """An error beside the largest one allowed; one that is not fatal is reported alone."""

    name: str
    error: float
    limit: float
    note: str = ""
    fatal: bool = True

    @property
    def ok(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Timing:
    """Measured seconds beside those at the device's ceilings (None where there is no such number)."""

    name: str
    seconds: float
    roofline: float | None
    note: str = ""

    @property
    def share(self) -> float | None:
        """Share of the roofline that was reached."""
        return None if self.roofline is None else self.roofline / self.seconds


@dataclass
class Report:
    """Facts about the machine, checks, times, and what was not measured."""

    facts: dict[str, Any]
    checks: list[Check] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Verdict: every check that counts has passed."""
        return bool(self.checks) and all(check.ok for check in self.checks if check.fatal)

    def run_checks(self, name: str, checks: Callable[[], Iterator[Check]]) -> None:
        """Keep what a family of checks yields; an exception is a failed check, and the next family goes on."""
        print(f"checking {name}", flush=True)
        try:
            self.checks.extend(checks())
        except Exception as error:
            self.checks.append(Check(name, float("nan"), 0.0, _first_line(error)))
            traceback.print_exc()

    def run_timings(self, name: str, timings: Callable[[], Iterator[Timing]]) -> None:
        """Keep what a family of timings yields; an exception fails the validation."""
        print(f"timing {name}", flush=True)
        try:
            self.timings.extend(timings())
        except Exception as error:
            self.checks.append(Check(f"timing {name}", float("nan"), 0.0, _first_line(error)))
            traceback.print_exc()

    def markdown(self) -> str:
        """Return the facts and two short tables."""
        lines = ["# GPU validation", ""]
        lines += [f"- {key}: {value}" for key, value in self.facts.items()]
        lines += ["", "| check | error | limit | ok |", "|---|---|---|---|"]
        for check in self.checks:
            verdict = "yes" if check.ok else "**no**" if check.fatal else "no (reported only)"
            note = f" ({check.note})" if check.note else ""
            lines.append(f"| {_cell(check.name + note)} | {check.error:.2g} | {check.limit:.2g} | {verdict} |")
        lines += ["", "| kernel | time, ms | roofline, ms | share |", "|---|---|---|---|"]
        for timing in self.timings:
            floor = "-" if timing.roofline is None else f"{1e3 * timing.roofline:.3g}"
            share = "-" if timing.share is None else f"{100 * timing.share:.0f} %"
            note = f" ({timing.note})" if timing.note else ""
            lines.append(f"| {_cell(timing.name + note)} | {1e3 * timing.seconds:.3g} | {floor} | {share} |")
        failed = sum(not check.ok for check in self.checks if check.fatal)
        verdict = "**All checks passed.**" if self.ok else f"**{failed} of {len(self.checks)} checks failed.**"
        return "\n".join([*lines, "", verdict, ""])

    def write(self, path: Path) -> None:
        """Write Markdown, or JSON where the name ends in .json."""
        if path.suffix != ".json":
            path.write_text(self.markdown())
            return
        checks = [{**vars(check), "ok": check.ok} for check in self.checks]
        timings = [{**vars(timing), "share": timing.share} for timing in self.timings]
        found = {"facts": self.facts, "checks": checks, "timings": timings, "ok": self.ok}
        path.write_text(json.dumps(_without_nan(found), indent=1) + "\n")


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None instead."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
