"""The table of what stages found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
_NOT_SHOWN = ("stage", "what", "end", "trace")


def markdown(rows: Sequence[Row]) -> str:
    """Return one line per stage, then one table per stage with a line per row that it emitted."""
    lines = ["# GPU stages", "", "| stage | ok | seconds | compiled | error |", "|---|---|---|---|---|"]
    for row in (row for row in rows if row.get("end")):
        verdict = {True: "yes", False: "**no**", None: "not run"}[row["ok"]]
        cells = (row["stage"], verdict, row.get("seconds", "-"), row.get("compiled", "-"), row.get("error", ""))
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        found = [row for row in rows if row["stage"] == stage and not row.get("end")]
        if found:
            lines += ["", f"## {stage}", ""]
        for row in found:
            facts = ", ".join(f"{key} {_cell(value)}" for key, value in row.items() if key not in _NOT_SHOWN)
            lines.append(f"- {_cell(row.get('what', ''))}: {facts}")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
