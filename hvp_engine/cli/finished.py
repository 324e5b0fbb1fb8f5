"""The commands that make something of finished runs: merge, compare and export."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from hvp_engine.cli.arguments import Json, Run
from hvp_engine.cli.kinds import kind_of
from hvp_engine.cli.output import print_spectra, say
from hvp_engine.results.export import FORMATS, json_text
from hvp_engine.results.export import export as write

Format = Enum("Format", {name: name for name in FORMATS}, type=str)  # type: ignore[misc]  # as many as there are
CSV = Format("csv")


def merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders of the same job, of other probes.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Run folder. The numbers of all probes and a manifest go there; the same command again finds them.",
        ),
    ],
) -> None:
    """Join runs of the same job with other probes.

    They are parts of one, which slq --first-probe made.
    """
    from hvp_engine.api import merge as join  # noqa: PLC0415 - keeps the other commands quick to start

    print_spectra(join(runs, out))
    say(f"Results are in {out}/; draw them with: hvp-engine plot {out}")


def compare(first: Run, second: Run, as_json: Json = False) -> None:
    """Print by how much two runs differ.

    Numbers of the second less those of the first, block by block, and how far apart the spectra are, with error bars.
    """
    from hvp_engine.api import compare as beside  # noqa: PLC0415

    found = beside(first, second)
    typer.echo(json_text(found.to_dict(), indent=1) if as_json else found.summary())


def export(
    run: Run,
    form: Annotated[Format, typer.Option("--format", help="What to write.")] = CSV,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File. The numbers go there; the same command renews it. Default: export.FORMAT in the run folder.",
        ),
    ] = None,
) -> None:
    """Write the numbers of a run for other programs.

    The documentation of the run folder lists the columns.
    """
    kind = kind_of(run)
    result = kind.load(run)
    for path in write(result, kind.record(result), out or run / f"export.{form.value}", form.value):
        say(str(path))
