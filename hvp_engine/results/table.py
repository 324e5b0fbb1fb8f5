"""Tables of spectra for terminals and logs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from hvp_engine.results.distances import mean_of_pairs, mean_to_others
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.system.formatting import NAME_CELLS, abbreviate, format_count, format_number, format_with_error

_COLUMNS = ("parameters", "trace", "Frobenius norm", "smallest", "largest", "steps", "JS0")
_UPPER = ("parameters", "trace", "Frobenius", "smallest", "JS0")
_LOWER = ("steps", "", "norm", "largest", "")
_MEAN = "mean over pairs"
_GAP, _GAP_OF_BOX = 2, 3  # columns of the terminal between those of the table


class _Row(NamedTuple):
    """One block, its numbers on one line or on two."""

    name: str
    line: tuple[str, ...]  # as _COLUMNS
    upper: tuple[str, ...]  # as _UPPER
    lower: tuple[str, ...]  # as _LOWER, standard errors under their values


def summary_table(spectra: Mapping[str, Spectrum], js_distance: FloatArray, width: int | None = None) -> Table | Group:
    """Lay out a table with a row for each block.

    Columns: block, parameters, trace and Frobenius norm with their standard errors, smallest and largest
    node, Lanczos steps (the range over probes), and JS0, the mean Jensen-Shannon distance to the other
    blocks.

    Args:
        spectra: One or more spectra.
        js_distance: Their Jensen-Shannon distances, shape (blocks, blocks).
        width: Columns of the terminal; None sets no limit. Where they are too few for one line, the numbers of a block
            take two, and its name one of its own if it must.
    """
    names = abbreviate([spectrum.name for spectrum in spectra.values()], min(width or NAME_CELLS, NAME_CELLS))
    others = mean_to_others(js_distance)
    rows = [_row(*parts) for parts in zip(names, spectra.values(), map(float, others), strict=True)]
    mean = format_number(mean_of_pairs(js_distance), 3) if len(rows) > 1 else ""
    first = _widest([("block",), *((row.name,) for row in rows), *([(_MEAN,)] if mean else [])])
    numbers = _widest([_COLUMNS, *(row.line for row in rows)])
    if width is None or sum(first + numbers) + _GAP_OF_BOX * len(numbers) <= width:
        return _one_line_each(rows, mean)
    return Group(*_two_lines_each(rows, mean, width))


def summary_text(spectra: Mapping[str, Spectrum], js_distance: FloatArray) -> str:
    """Write the table of ``summary_table``, whose arguments it has, as plain text as wide as it needs to be."""
    table = summary_table(spectra, js_distance)
    buffer = io.StringIO()
    console = Console(file=buffer, width=10_000, color_system=None, legacy_windows=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().strip("\n").splitlines())


def _row(name: str, spectrum: Spectrum, mean_js: float) -> _Row:
    smallest, largest = map(format_number, spectrum.extremes())
    fewest, most = int(spectrum.steps.min()), int(spectrum.steps.max())
    steps = str(most) if fewest == most else f"{fewest}–{most}"
    parameters, js0 = format_count(spectrum.numel), format_number(mean_js, 3)
    trace, norm = spectrum.trace(), spectrum.frobenius_norm()
    errors = (f"± {format_number(estimate.stderr, 2)}" for estimate in (trace, norm))
    return _Row(
        name,
        (parameters, format_with_error(*trace), format_with_error(*norm), smallest, largest, steps, js0),
        (parameters, format_number(trace.value), format_number(norm.value), smallest, js0),
        (steps, *errors, largest, ""),
    )


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
    beside = first + _GAP + sum(widths) + _GAP * (len(widths) - 1) <= width
    column = first if beside else 0

    def aligned(name: str, cells: Sequence[str]) -> str:
        numbers = (" " * (wide - cell_len(cell)) + cell for wide, cell in zip(widths, cells, strict=True))
        return (" " * _GAP).join((name + " " * (column - cell_len(name)), *numbers)).rstrip()

    for name, cells in (("block" if beside else "", _UPPER), ("", _LOWER)):
        yield Text(aligned(name, cells), style="bold")
    for row in rows:
        if not beside:
            yield Text(row.name)
        yield Text(aligned(row.name if beside else "", row.upper))
        yield Text(aligned("", row.lower))
    if mean:
        yield Text(f"{_MEAN}: JS0 {mean}")


def _widest(lines: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column."""
    return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
