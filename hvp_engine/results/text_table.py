"""Small tables of blocks as plain text: a name, then numbers to the right, as wide as they need to be."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hvp_engine.system.formatting import abbreviate


def text_table(titles: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], first: str = "block") -> list[str]:
    """Lay out a row per block; return the lines.

    Args:
        titles: Of the numbers.
        rows: Name of a block, and its numbers.
        first: Title of the names.
    """
    kept = list(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for name, (_, cells) in zip(abbreviate([name for name, _ in kept]), kept, strict=True):
        table.add_row(*map(Text, (name, *cells)))
    buffer = io.StringIO()
    Console(file=buffer, width=10_000, color_system=None, legacy_windows=False).print(table)
    return [line.rstrip() for line in buffer.getvalue().strip("\n").splitlines()]
