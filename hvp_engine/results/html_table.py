"""Tables for notebooks: plain HTML that follows the notebook's own style, with a stranger's names as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from hvp_engine.errors import printable

_LEFT, _RIGHT = ' style="text-align: left"', ' style="text-align: right"'


def html_table(
    titles: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    above: Iterable[str] = (),
    below: Iterable[str] = (),
    first: str = "block",
) -> str:
    """Write a table with a row per block.

    Args:
        titles: Of the numbers.
        rows: Name of a block, and its numbers.
        above: Lines above the table.
        below: Lines below it.
        first: Title of the names.
    """
    body = "\n".join(_row("td", name, cells) for name, cells in rows)
    table = f"<table>\n<thead>\n{_row('th', first, titles)}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return "\n".join((*map(_line, above), table, *map(_line, below)))


def _row(tag: str, name: str, cells: Sequence[str]) -> str:
    numbers = "".join(f"<{tag}{_RIGHT}>{_text(cell)}</{tag}>" for cell in cells)
    return f"<tr><{tag}{_LEFT}>{_text(name)}</{tag}>{numbers}</tr>"


def _line(text: str) -> str:
    return f"<div>{_text(text)}</div>"


def _text(text: str) -> str:
    return escape(printable(text))
