"""The command that draws finished runs: the figures of one, or how several ones of a training differ."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from hvp_engine.cli.kinds import Figure, kind_of
from hvp_engine.cli.output import say
from hvp_engine.errors import ConfigurationError
from hvp_engine.results.evolution import Evolution
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.words import Scale
from hvp_engine.system.phases import phase
from hvp_engine.system.run_files import is_finished

_FEWEST_COLUMNS = 3  # of a heat map over steps, below which it is no more than two densities

ScaleOption = Enum("ScaleOption", {name: name for name in get_args(Scale)}, type=str)  # type: ignore[misc]  # as known


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="A run folder, or several to draw over time.")],
    suffix: Annotated[str, typer.Option(metavar="NAME", help="Format of the files: png, pdf or svg.")] = "png",
    blocks: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="A block's name or a glob; repeat for more. Default: all.")
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Standard deviation of the Gaussians, in eigenvalues.")
    ] = None,
    scale: Annotated[
        ScaleOption | None,
        typer.Option(metavar="NAME", help=f"Of the eigenvalues: {', '.join(get_args(Scale))}; log shows magnitudes."),
    ] = None,
    share_x: Annotated[bool, typer.Option("--share-x", help="Give all panels the same eigenvalues.")] = False,
    figsize: Annotated[str | None, typer.Option(metavar="W,H", help="Size of the page in inches.")] = None,
) -> None:
    """Draw the figures of a run into its folder.

    Of several runs, how they differ over time is drawn, into the folder that has them all. They are in the order of the
    numbers in their names: step-000100, step-000200.
    """
    given = {
        "blocks": blocks or None,
        "sigma": sigma,
        "scale": None if scale is None else scale.value,
        "share_x": share_x or None,
        "figsize": None if figsize is None else _size(figsize),
    }
    options = {name: value for name, value in given.items() if value is not None}
    if len(runs) == 1:
        kind = kind_of(runs[0])
        _draw(kind.figures, partial(kind.load, runs[0]), runs[0], suffix, options)
        return
    evolution = Evolution.load(_finished(runs))
    names = ["extremes", "trace", *(["js0"] if evolution.js0 else [])]
    names += ["density"] * (len(evolution.runs) >= _FEWEST_COLUMNS)
    figures = {f"evolution_{name}": Figure(partial(Evolution.plot, figure=name), _taken(name)) for name in names}
    places = {run.parent for run in runs}
    folder = places.pop() if len(places) == 1 else Path(os.path.commonpath([run.absolute().parent for run in runs]))
    _draw(figures, lambda: evolution, folder, suffix, options)


def _taken(figure: str) -> tuple[str, ...]:
    """Return the options that a figure over time takes."""
    of_eigenvalues = ("scale", "share_x") if figure in ("extremes", "density") else ()
    return ("blocks", "figsize", *of_eigenvalues, *(["sigma"] if figure == "density" else []))


def _draw(
    figures: Mapping[str, Figure], load: Callable[[], Any], folder: Path, suffix: str, options: Mapping[str, Any]
) -> None:
    """Draw figures into a folder, each with the options that it takes.

    Raises:
        ConfigurationError: No figure takes one of the options.
    """
    if not figures:
        say("A run of this kind has no figure; hvp-engine show prints its numbers.")
        return
    taken = {name for figure in figures.values() for name in figure.options}
    for name in options:
        if name not in taken:
            option = name.replace("_", "-")
            raise ConfigurationError(f"Option --{option} means nothing to figures of such runs; leave it out.")
    result = load()
    for name, figure in figures.items():
        path = folder / f"{name}.{suffix}"
        with phase(f"drawing {path.name}"):
            figure.draw(result, path=path, **{key: value for key, value in options.items() if key in figure.options})
        say(str(path))


def _finished(runs: Sequence[Path]) -> list[Path]:
    """Return the runs that have a result; a shell's RUN/* names figures too, which are no folders.

    Raises:
        RunFolderError: A folder is foreign or damaged.
        ConfigurationError: One has a result of another kind.
    """
    found = []
    for run in runs:
        if run.exists() and not run.is_dir():
            continue
        if run.is_dir() and not is_finished(run):
            say(f"{run} has no result yet, and is left out.")
            continue
        if kind_of(run).load != Spectra.load:
            raise ConfigurationError(f"{run} has no spectra; over time only runs of hvp-engine slq can be drawn.")
        found.append(run)
    return found


def _size(text: str) -> tuple[float, ...]:
    """Return the --figsize option as numbers.

    Raises:
        ConfigurationError: It is of another form.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"Option --figsize {text!r} is not of the form W,H, for instance 8,6.") from None
