"""Rows of the table, what they are to reach, and the table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

KEPT = 2 / 3  # of a ratio, beside busy processes


@dataclass(frozen=True)
class Target:
    """How many times faster a row is to be; below the floor it fails for good."""

    wanted: float
    floor: float = 0.0

    def __str__(self) -> str:
        """Return it as the table shows it."""
        return f">= {self.wanted:g}" + (f" (floor {self.floor:g})" if self.floor else "")

    def reached(self, ratio: float) -> str:
        """Say whether a ratio reaches it."""
        return "yes" if ratio >= self.wanted else "above its floor" if 0 < self.floor <= ratio else "**no**"


@dataclass
class Row:
    """Seconds of ours and of what it is compared with, from one alternated run.

    Attributes:
        job: What is timed.
        case: With which network, or how.
        ours: Seconds.
        theirs: Seconds of the fastest of the others.
        against: Who that is.
        target: What their quotient is to reach.
        others: Seconds of all others.
        notes: What one must know to read the row.
        busy: The quotient beside busy processes, where that was measured.
    """

    job: str
    case: str
    ours: float
    theirs: float
    against: str
    target: Target
    others: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    busy: float | None = None

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.theirs / self.ours

    @property
    def kept(self) -> float | None:
        """The share of the quotient that is left beside busy processes."""
        return None if self.busy is None else self.busy / self.ratio

    def cells(self) -> list[str]:
        """Return the cells of the table."""
        cells = [self.job, self.case, shown(self.ours), f"{self.against}: {shown(self.theirs)}", f"{self.ratio:.2f}"]
        cells += [str(self.target), self.target.reached(self.ratio)]
        if self.kept is not None:
            cells += [f"{self.busy:.2f}", f"{self.kept:.2f} ({'yes' if self.kept >= KEPT else '**no**'})"]
        return cells


def shown(seconds: float) -> str:
    """Return a time in its unit."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} us"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def joined(quiet: Iterable[Row], beside: Iterable[Row]) -> list[Row]:
    """Put what the same rows reached beside busy processes into the quiet ones."""
    reached = {(row.job, row.case, row.target): row.ratio for row in beside}
    rows = list(quiet)
    for row in rows:
        row.busy = reached.get((row.job, row.case, row.target))
    return rows


def markdown(rows: list[Row], facts: dict[str, Any], busy: int, remarks: list[str]) -> str:
    """Return the table, the times of everybody, and the notes.

    Args:
        rows: Those that were measured.
        facts: Of the machine and of the run.
        busy: How many busy processes there were beside the second measurement; 0 without one.
        remarks: Further lines.
    """
    head = ["job", "case", "ours", "against", "times faster", "target", "reached"]
    if busy:
        head += [f"beside {busy} busy", f"share kept (>= {KEPT:.2f})"]
    lines = ["# Times against others", "", ", ".join(f"{key} {value}" for key, value in facts.items()) + ".", ""]
    lines += [_line(head), _line(["---"] * len(head))]
    lines += [_line(row.cells() + [""] * (len(head) - len(row.cells()))) for row in rows]
    if everybody := [row for row in rows if row.others]:
        names = list(dict.fromkeys(name for row in everybody for name in row.others))
        lines += ["", "What each of them takes:", "", _line(["job", "case", "hvp_engine", *names])]
        lines.append(_line(["---"] * (3 + len(names))))
        for row in everybody:
            times = [shown(row.others[name]) if name in row.others else "-" for name in names]
            lines.append(_line([row.job, row.case, shown(row.ours), *times]))
    notes = [f"- {row.job}, {row.case}: {note}." for row in rows for note in row.notes]
    notes += [f"- {remark}." for remark in remarks]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
