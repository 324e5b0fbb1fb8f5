"""What commands print: tables as wide as the terminal, lines that may quote a stranger."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from hvp_engine.errors import printable
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.table import summary_table


def print_spectra(spectra: Spectra) -> None:
    """Print the table as wide as the terminal, or as long as its lines are where there is none."""
    if sys.stdout.isatty():
        terminal = console()
        terminal.print(summary_table(spectra.summarize(), terminal.width))
        if spectra.data_error is not None:
            typer.echo(f"\n{spectra.data_error.summary()}")
    else:
        typer.echo(spectra.summary())


def say(text: str) -> None:
    """Print a line that may quote what a stranger wrote."""
    typer.echo(printable(text))


def console() -> Console:
    """Return what prints: a pipe has no width of its own, rather long lines there than cut numbers."""
    return Console() if sys.stdout.isatty() else Console(width=200)
