"""What a run folder may hold, by the name of the job that wrote it, and how each kind is shown and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import typer

from hvp_engine.cli.output import print_spectra
from hvp_engine.errors import RunFolderError
from hvp_engine.results.diagonals import Diagonals
from hvp_engine.results.eigensystem import Eigensystem
from hvp_engine.results.norms import Norms
from hvp_engine.results.off_diagonal import OffDiagonal
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.traces import Traces
from hvp_engine.system.run_files import MANIFEST, read_manifest


def _print_summary(result: Any) -> None:
    typer.echo(result.summary())


class Figure(NamedTuple):
    """One figure of a result.

    Attributes:
        draw: Takes the result, ``path`` and the options.
        options: Names of the options of the command that it takes.
    """

    draw: Callable[..., Any]
    options: tuple[str, ...]


def _record_of_spectra(spectra: Spectra) -> dict[str, Any]:
    """Return the numbers of a table, and beside them the bars for the choice of data where there are any."""
    errors = spectra.data_error
    return {**spectra.summarize().record(), **({} if errors is None else {"data_error": errors.record()})}


def _record_of_pairs(found: Eigensystem) -> dict[str, Any]:
    return {"blocks": found.record()}


class Kind(NamedTuple):
    """One kind of result; its class is a ``Tabular`` with a ``manifest``.

    Attributes:
        load: Reads a run folder.
        figures: Its figures, by the name of the file without its suffix.
        record: Makes plain data of the result, for ``--json``: a mapping.
        settings: What of the configuration is shown below the table.
        print: Prints the table.
    """

    load: Callable[[Path], Any]
    figures: Mapping[str, Figure]
    record: Callable[[Any], Mapping[str, Any]]
    settings: tuple[str, ...]
    print: Callable[[Any], None] = _print_summary


SLQ = "slq"
"""The job whose manifests do not name it."""

_SPECTRA = Kind(
    Spectra.load,
    {
        "spectra": Figure(Spectra.plot, ("blocks", "figsize", "sigma", "scale", "share_x")),
        "js_distance": Figure(Spectra.plot_js, ("blocks", "figsize")),
    },
    _record_of_spectra,
    ("matrix", "tolerance", "steps", "probes", "seed", "distribution", "precision", "reorthogonalize", "basis"),
    print_spectra,
)


def _plot_pairs(found: Eigensystem, share_x: bool = False, **options: Any) -> Any:
    return found.plot(share_y=share_x, **options)  # where the eigenvalues are


_PAIRS = {"eigenpairs": Figure(_plot_pairs, ("blocks", "figsize", "scale", "share_x"))}
_OF_PAIRS = ("matrix", "k", "which", "tolerance", "seed", "precision")
_SAMPLED = ("matrix", "most_products", "tolerance", "method", "seed", "precision")

# A new kind of result is one line here.
KINDS: dict[str, Kind] = {
    SLQ: _SPECTRA,
    "eigsh": Kind(Eigensystem.load, _PAIRS, _record_of_pairs, _OF_PAIRS),
    "trace": Kind(Traces.load, {}, Traces.record, _SAMPLED),
    "diagonal": Kind(Diagonals.load, {}, Diagonals.record, _SAMPLED),
    "norms": Kind(Norms.load, {}, Norms.record, _SAMPLED),
    "off diagonal": Kind(OffDiagonal.load, {}, OffDiagonal.record, ("matrix", "probes", "seed", "precision")),
}


def kind_of(run: Path) -> Kind:
    """Return the kind of result that a run folder holds.

    Raises:
        RunFolderError: The folder is missing, damaged or foreign, or its result is of no kind that can be shown.
    """
    facts = read_manifest(run).get("run")
    config = facts.get("config") if isinstance(facts, dict) else None
    job = config.get("job", SLQ) if isinstance(config, dict) else SLQ
    if job not in tuple(KINDS):
        raise RunFolderError(
            f"{run} holds the result of a job {job!r}, which is none of {', '.join(KINDS)}; read its {MANIFEST}, or "
            "upgrade hvp-engine."
        )
    return KINDS[job]
