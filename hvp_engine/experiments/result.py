"""What a driver returns, and how it lands on disk: table, claims, figures, settings, whole or not at all."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure

from hvp_engine.experiments.figures import image
from hvp_engine.experiments.registry import Driver
from hvp_engine.system.files import Chunks, prove_writable, write_atomic
from hvp_engine.system.formatting import format_number
from hvp_engine.system.json_files import json_chunks
from hvp_engine.system.versions import versions

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """The printed table.

    Attributes:
        columns: Their titles.
        rows: As many cells each as there are columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """Write the table as people read it, numbers to four digits."""
        lines = [self.columns, tuple("---" for _ in self.columns), *(map(_shown, row) for row in self.rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def csv(self) -> str:
        """Write the table for programs, numbers to all their digits."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue()


@dataclass(frozen=True)
class Claim:
    """One thing that a driver decides.

    Attributes:
        statement: What is claimed, with its bound, in words.
        statistic: What the values are.
        threshold: Their bound.
        values: One per seed, or a single one of all seeds together.
        holds: Whether it is so.
        source: Where the claim stands.
        paper: The paper's number; None where it gives none that compares.
        relation: On which side of the threshold the values have to be.
        needed: How many of the values have to be there.
    """

    statement: str
    statistic: str
    threshold: float
    values: tuple[float, ...]
    holds: bool
    source: str
    paper: float | None = None
    relation: Literal[">=", "<="] = ">="
    needed: int = 1

    def line(self, name: str) -> str:
        """Say in one line whether it holds: by how many seeds, and by the value nearest to failing."""
        worst = _worst(self.relation, self.values)
        inside = sum(_is_inside(value, self.relation, self.threshold) for value in self.values)
        which = f"{'smallest' if self.relation == '>=' else 'largest'} " if len(self.values) > 1 else ""
        seeds = f"{inside} of {len(self.values)} seeds; " if len(self.values) > 1 else ""
        said = "holds" if self.holds else "does not hold"
        return f"{name} {said}: {self.statement} ({seeds}{which}{self.statistic} {format_number(worst)})"


def at_least(
    statement: str,
    statistic: str,
    values: Sequence[float],
    threshold: float,
    source: str,
    needed: int | None = None,
    paper: float | None = None,
) -> Claim:
    """Claim that a statistic is at least ``threshold`` in ``needed`` of its values; None: in all of them."""
    return _claim(statement, statistic, values, threshold, source, needed, paper, ">=")


def at_most(
    statement: str,
    statistic: str,
    values: Sequence[float],
    threshold: float,
    source: str,
    needed: int | None = None,
    paper: float | None = None,
) -> Claim:
    """Claim that a statistic is at most ``threshold`` in ``needed`` of its values; None: in all of them."""
    return _claim(statement, statistic, values, threshold, source, needed, paper, "<=")


@dataclass(frozen=True)
class Result:
    """What a driver found.

    Attributes:
        table: The printed table.
        claims: What was decided, in the order of their weight.
        figure: Becomes ``figure.png`` and ``figure.pdf``.
        settings: What the numbers depend on beside the command: steps, probes, models, data with their licences.
        seconds: Wall time per part.
        notes: What a reader must know, a sentence each: gates that were left out, edges of grids.
        figures: Further ones by name: ``{"grid": ...}`` becomes ``grid.png`` and ``grid.pdf``.
        files: Further files by name, their content.
    """

    table: Table
    claims: tuple[Claim, ...]
    figure: Figure
    settings: Mapping[str, object]
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)

    def write(self, out: Path, driver: Driver) -> None:
        """Write manifest, table, claims and figures to a folder, each file whole or not at all, the manifest last.

        Raises:
            RunFolderError: The folder cannot be made or written.
        """
        prove_writable(out)
        contents: dict[Path, Chunks] = {out / name: [content] for name, content in self.files.items()}
        for name, figure in {"figure": self.figure, **self.figures}.items():
            for kind in ("png", "pdf"):
                contents[out / f"{name}.{kind}"] = [image(figure, kind)]
        contents[out / "table.csv"] = [self.table.csv().encode()]
        contents[out / "table.md"] = [self.table.markdown().encode()]
        contents[out / "claim.json"] = json_chunks(self._claims(driver))
        contents[out / "manifest.json"] = json_chunks(self._manifest(driver))
        write_atomic(contents)

    def _claims(self, driver: Driver) -> dict[str, object]:
        claims = [_plain(asdict(claim)) for claim in self.claims]
        return {"driver": driver.name, "id": driver.id, "claim": driver.claim, "holds": self.holds, "claims": claims}

    def _manifest(self, driver: Driver) -> dict[str, object]:
        return {
            "driver": driver.name,
            "id": driver.id,
            "versions": versions(),
            "settings": _plain(self.settings),
            "seconds": _plain(self.seconds),
            "notes": list(self.notes),
        }


def _claim(
    statement: str,
    statistic: str,
    values: Sequence[float],
    threshold: float,
    source: str,
    needed: int | None,
    paper: float | None,
    relation: Literal[">=", "<="],
) -> Claim:
    kept = tuple(float(value) for value in values)
    least = max(1, len(kept) if needed is None else needed)  # a claim about nothing does not hold
    holds = sum(_is_inside(value, relation, threshold) for value in kept) >= least
    return Claim(statement, statistic, threshold, kept, holds, source, paper, relation, least)


def _is_inside(value: float, relation: Literal[">=", "<="], threshold: float) -> bool:
    return value >= threshold if relation == ">=" else value <= threshold  # never so for nan


def _worst(relation: Literal[">=", "<="], values: Sequence[float]) -> float:
    if not values or any(map(math.isnan, values)):
        return math.nan
    return min(values) if relation == ">=" else max(values)


def _shown(cell: Cell) -> str:
    return format_number(cell) if isinstance(cell, float) else str(cell).replace("|", "\\|")


def _plain(value: object) -> object:
    """Return a value as JSON has it: paths as text, and what is not finite by its name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value
