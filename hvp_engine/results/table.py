"""Tables of spectra for terminals and logs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hvp_engine.results.distances import mean_of_pairs, mean_to_others
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.system.formatting import format_count, format_number, format_with_error

_COLUMNS = ("parameters", "trace", "Frobenius norm", "smallest", "largest", "steps", "JS0")


def summary_table(spectra: Mapping[str, Spectrum], js_distance: FloatArray) -> Table:
    """Lay out a table with a row for each block.

    Columns: block, parameters, trace and Frobenius norm with their standard errors, smallest and largest
    node, Lanczos steps (the range over probes), and JS0, the mean Jensen-Shannon distance to the other
    blocks.

    Args:
        spectra: One or more spectra.
        js_distance: Their Jensen-Shannon distances, shape (blocks, blocks).
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_footer=len(spectra) > 1)
    table.add_column("block", footer="mean over pairs", overflow="fold")
    for title in _COLUMNS:
        footer = format_number(mean_of_pairs(js_distance), 3) if title == "JS0" else ""
        table.add_column(title, footer=footer, justify="right", no_wrap=True)
    for row in _rows(spectra, js_distance):
        table.add_row(*map(Text, row))
    return table


def summary_text(spectra: Mapping[str, Spectrum], js_distance: FloatArray) -> str:
    """Write the table of ``summary_table``, whose arguments it has, as plain text as wide as it needs to be."""
    table = summary_table(spectra, js_distance)
    buffer = io.StringIO()
    console = Console(file=buffer, width=10_000, color_system=None, legacy_windows=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().strip("\n").splitlines())


def _rows(spectra: Mapping[str, Spectrum], js_distance: FloatArray) -> Iterator[tuple[str, ...]]:
    for spectrum, mean_js in zip(spectra.values(), mean_to_others(js_distance), strict=True):
        smallest, largest = spectrum.extremes()
        fewest, most = int(spectrum.steps.min()), int(spectrum.steps.max())
        yield (
            spectrum.name,
            format_count(spectrum.numel),
            format_with_error(*spectrum.trace()),
            format_with_error(*spectrum.frobenius_norm()),
            format_number(smallest),
            format_number(largest),
            str(most) if fewest == most else f"{fewest}–{most}",
            format_number(float(mean_js), 3),
        )
