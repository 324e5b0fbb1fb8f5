"""Tables of spectra for terminals and logs: every number with its bar, and below them what to know of all."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hvp_engine.results.account import Account
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.notes import BARS, matrix_note, notes
from hvp_engine.results.record import OF_A_BLOCK
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.summary import BlockSummary, Summary
from hvp_engine.results.tabular import Cells
from hvp_engine.results.words import NOTHING, UNKNOWN, NumberText, number_text
from hvp_engine.system.formatting import NAME_CELLS, abbreviate, format_count

_COLUMNS = (
    "parameters",
    "trace",
    "Frobenius norm",
    "smallest",
    "largest",
    "outliers",
    "JS0",
    "steps x probes",
    "products",
    "stopped by",
)
_UPPER = ("parameters", "trace", "Frobenius", "smallest", "largest", "out-", "JS0", "products")
_LOWER = ("steps", "± 95 %", "± 95 %", "± 95 %", "± 95 %", "liers", "± 95 %", "stopped")
_NUMBERS = ("trace", "frobenius_norm", "smallest", "largest", "js0")
_BOUNDS = {"smallest": "≤", "largest": "≥"}  # a Ritz value lies inside the range of the eigenvalues
_JS_DIGITS = 3
_WIDEST_COUNT = 7  # characters, from which on an upper end says less than the room that it takes
_MEAN = "mean over pairs"
_GAPS = (2, 1)  # columns of the terminal between those of the table; one where two do not fit
_GAP_OF_BOX = 3
_PROSE = 120  # columns of a line of text where there is no terminal


class _Row(NamedTuple):
    """One block, its numbers on one line or on two."""

    name: str
    line: tuple[str, ...]  # as _COLUMNS
    upper: tuple[str, ...]  # as _UPPER
    lower: tuple[str, ...]  # as _LOWER, bars under their values


def summary_table(summary: Summary, width: int | None = None) -> Group:
    """Lay out a table with a row for each block, and lines below it that say how its numbers were made.

    Columns: block, parameters, trace, Frobenius norm, smallest and largest eigenvalue with their 95 % bars, number of
    outliers, JS0, the mean Jensen-Shannon distance to the other blocks; Lanczos steps (the range over probes) times
    probes and single products, products of those at the ceilings, and the rule that ended the block, with a ``!`` where
    a target was not reached.

    Args:
        summary: The numbers of one or more blocks.
        width: Columns of the terminal; None sets no limit. Where they are too few for one line, the numbers of a block
            take two, and its name one of its own if it must.
    """
    blocks = summary.blocks
    names = abbreviate([block.name for block in blocks], min(width or NAME_CELLS, NAME_CELLS))
    rows = [_row(*parts) for parts in zip(names, blocks, strict=True)]
    mean = number_text(summary.js0, _JS_DIGITS).line if len(rows) > 1 else ""
    first = _widest([("block",), *((row.name,) for row in rows), *([(_MEAN,)] if mean else [])])
    numbers = _widest([_COLUMNS, *(row.line for row in rows)])
    below = [Text(line) for note in notes(summary) for line in _wrapped(note, width or _PROSE)]
    if width is None or sum(first + numbers) + _GAP_OF_BOX * len(numbers) <= width:
        return Group(_one_line_each(rows, mean), *below)
    return Group(*_two_lines_each(rows, mean, width), *below)


def summary_text(summary: Summary) -> str:
    """Write the table of ``summary_table`` as plain text, its rows as wide as they need to be."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=10_000, color_system=None, legacy_windows=False)
    console.print(summary_table(summary))
    return "\n".join(line.rstrip() for line in buffer.getvalue().strip("\n").splitlines())


def block_cells(spectra: Mapping[str, Spectrum], spent: Mapping[str, Account], matrix: str | None) -> Cells:
    """Write what blocks are by themselves, which takes no time: the table without distances, for notebooks.

    Args:
        spectra: By block name.
        spent: What each cost.
        matrix: Whose spectra they are, in words; None for the Hessian.
    """
    kinds = [kind for kind in _NUMBERS if kind in OF_A_BLOCK]
    rows = []
    for name, spectrum in spectra.items():
        numbers = {kind: number(spectrum) for kind, number in OF_A_BLOCK.items()}
        texts = (*(_text(kind, numbers).line for kind in kinds), _outliers(numbers["outliers"]))
        rows.append((name, (format_count(spectrum.numel), *texts, spent[name].shape)))
    titles = tuple(title for title in _COLUMNS[: _COLUMNS.index("products")] if title != "JS0")
    return Cells(titles, rows, below=[*matrix_note(matrix), BARS])


def _row(name: str, block: BlockSummary) -> _Row:
    account, parameters = block.account, format_count(block.numel)
    trace, norm, smallest, largest, js0 = texts = [_text(kind, block.numbers) for kind in _NUMBERS]
    numbers = (trace, norm, smallest, largest)
    outliers = _outliers(block.numbers["outliers"])
    stopped = account.stopped_by + "!" * bool(
        account.missed
    )  # "ceiling of steps!", or "steps!" where there is less room
    return _Row(
        name,
        (
            parameters,
            *(n.line for n in numbers),
            outliers,
            js0.line,
            account.shape,
            _products(account, " of "),
            stopped,
        ),
        (parameters, *(n.value for n in numbers), outliers, js0.value, _products(account, "/")),
        (account.shape.replace(" ", ""), *(n.bar for n in texts[:-1]), "", js0.bar, stopped.rpartition(" ")[2]),
    )


def _text(kind: str, numbers: Mapping[str, Estimate]) -> NumberText:
    return number_text(numbers[kind], **({"digits": _JS_DIGITS} if kind == "js0" else {"bound": _BOUNDS.get(kind, "")}))


def _outliers(estimate: Estimate) -> str:
    """Write how many eigenvalues stand apart, or between which numbers."""
    if math.isnan(estimate.value):
        return NOTHING
    if not math.isfinite(estimate.high - estimate.low):
        return UNKNOWN
    low, high = math.floor(estimate.low), math.ceil(estimate.high)
    text = f"{low}" if low == high else f"{low}–{high}"
    return text if len(text) <= _WIDEST_COUNT else f"≥ {low}"


def _products(account: Account, of: str) -> str:
    spent = format_count(account.products)
    return spent if account.ceiling is None else f"{spent}{of}{format_count(account.ceiling)}"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _one_line_each(rows: Sequence[_Row], mean: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_footer=bool(mean))
    table.add_column("block", footer=_MEAN, overflow="fold")
    for title in _COLUMNS:
        table.add_column(title, footer=mean if title == "JS0" else "", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, (row.name, *row.line)))
    return table


def _two_lines_each(rows: Sequence[_Row], mean: str, width: int) -> Iterator[Text]:
    widths = _widest([_UPPER, _LOWER, *(line for row in rows for line in (row.upper, row.lower))])
    (first,) = _widest([("block",), *((row.name,) for row in rows)])
    wanted = sum(widths) + (len(widths) - 1) * _GAPS[0]
    gap = _GAPS[0] if wanted <= width else _GAPS[1]
    beside = first + _GAPS[0] + wanted <= width
    column = first if beside else 0

    def aligned(name: str, cells: Sequence[str]) -> str:
        numbers = (" " * (wide - cell_len(cell)) + cell for wide, cell in zip(widths, cells, strict=True))
        start = name + " " * (column + _GAPS[0] - cell_len(name)) if beside else ""
        return (start + (" " * gap).join(numbers)).rstrip()

    for name, cells in (("block", _UPPER), ("", _LOWER)):
        yield Text(aligned(name, cells), style="bold")
    for row in rows:
        if not beside:
            yield Text(row.name)
        yield Text(aligned(row.name, row.upper))
        yield Text(aligned("", row.lower))
    if mean:
        yield Text(f"{_MEAN}: JS0 {mean}")


def _widest(lines: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column."""
    return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
