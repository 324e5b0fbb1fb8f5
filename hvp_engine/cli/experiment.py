"""The command that lists, plans, runs and checks the drivers: experiment."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from hvp_engine.cli.arguments import Arithmetic, Precision, Quiet
from hvp_engine.cli.job_file import output_to_errors
from hvp_engine.cli.options import pairs_of
from hvp_engine.cli.output import console, say
from hvp_engine.errors import ConfigurationError, HvpEngineError
from hvp_engine.system.formatting import format_bytes, format_flop, format_number
from hvp_engine.system.phases import showing
from hvp_engine.system.visible import progress_of_calls

if TYPE_CHECKING:
    from hvp_engine.experiments.paper_plan import PlannedPart
    from hvp_engine.experiments.registry import Driver, Setting

_FAILS, _NOT_RUN = 1, 2  # exit codes: a claim does not hold, an experiment could not be run
_ALL = "all"
_MOST_HOURS = 24.0  # at the paper's size, without --yes


class Size(str, Enum):
    """Sizes that a driver has."""

    small, paper = "small", "paper"


def experiment(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which one, or all; without it they are listed.")
    ] = None,
    size: Annotated[Size, typer.Option(metavar="NAME", help="small, for two cores, or paper.")] = Size.small,
    seeds: Annotated[int, typer.Option(metavar="N", help="How many seeds: 0, 1 and so on.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the experiment: table, claims, figure and manifest go there; of all, where their folders "
            "go. Spectra and trainings are kept in cache/ beside it, where the same command, and other experiments, "
            "find them. Default: results/NAME.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="NAME=PATH", help="A data set; repeat for more.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", metavar="NAME=PATH", help="Pre-trained weights, likewise.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeat for more.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")] = "cpu",
    precision: Arithmetic = Precision.fp32,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a claim does not hold.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it costs, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Run what is planned to take more than 24 hours.")] = False,
    quiet: Quiet = False,
) -> None:
    """List the papers' experiments, or run one.

    It leaves a table, a figure, and claims that are checked; the same command resumes it.

    Exit code 0: it ran. 1: with --check, a claim does not hold. 2: an experiment could not be run.
    """
    from hvp_engine.experiments.registry import DRIVERS, Setting, find  # noqa: PLC0415 - other commands start sooner

    if name is None:
        _list(DRIVERS)
        return
    try:
        drivers = DRIVERS if name == _ALL else (find(name),)
        options = pairs_of("--set", settings)
        if options and name == _ALL:
            raise ConfigurationError("Option --set is for one experiment; run that one by its name.")
        folders = _folders(drivers, out, name)
        data_paths, weight_paths = (
            {key: Path(path) for key, path in pairs_of(option, given).items()}
            for option, given in (("--data", data), ("--weights", weights))
        )
    except HvpEngineError as error:
        raise _refused(error) from None
    common = Setting(size.value, seeds, Path(), data_paths, weight_paths, device, precision.value, options)
    work: Callable[[Driver, Setting], bool] = _planned if plan else partial(_ran, yes=yes, quiet=quiet)
    asked = {driver: replace(common, out=folder) for driver, folder in zip(drivers, folders, strict=True)}
    if len(asked) > 1 and not plan:
        _tell_what_cannot_run(asked)
    codes = [_guarded(work, driver, setting) for driver, setting in asked.items()]
    if _NOT_RUN in codes:
        raise typer.Exit(_NOT_RUN)
    if check and _FAILS in codes:
        raise typer.Exit(_FAILS)


def _guarded(work: Callable[[Driver, Setting], bool], driver: Driver, setting: Setting) -> int:
    """Do one driver's work; what stops it stops no other one, be it a fault of ours."""
    try:
        return 0 if work(driver, setting) else _FAILS
    except HvpEngineError as error:
        typer.echo(f"error: {driver.id} {driver.name}: {error}", err=True)
    except Exception:
        typer.echo(f"error: {driver.id} {driver.name} broke off:\n{traceback.format_exc()}", err=True)
    return _NOT_RUN


def _tell_what_cannot_run(asked: Mapping[Driver, Setting]) -> None:
    """Say what is missing for some of many experiments before the first one runs for long; their turn says it again."""
    from hvp_engine.experiments.running import check  # noqa: PLC0415 - keeps the list quick

    for driver, setting in asked.items():
        try:
            check(driver, setting)
        except HvpEngineError as error:
            typer.echo(f"{driver.id} {driver.name} will not run: {error}", err=True)


def _ran(driver: Driver, setting: Setting, *, yes: bool, quiet: bool) -> bool:
    """Run a driver and print its table, what to know of it, and its claims last; say whether they all hold."""
    from hvp_engine.experiments import run  # noqa: PLC0415 - keeps the list quick

    if setting.size == Size.paper:
        hours = _print_plan(driver, setting)
        if hours > _MOST_HOURS and not yes:
            raise ConfigurationError(
                f"The plan is for {format_number(hours, 3)} h, more than {_MOST_HOURS:g}; add --yes to run it all the "
                "same, or --size small."
            )
    if not quiet:
        typer.echo(f"{driver.id} {driver.name}: begins", err=True)
    with output_to_errors(), progress_of_calls(not quiet), showing(not quiet):
        result = run(
            driver.name,
            setting.size,
            setting.seeds,
            setting.out,
            setting.data,
            setting.weights,
            setting.device,
            setting.precision,
            setting.options,
        )
    say(f"{driver.id} {driver.name}: table, claims and figures are in {setting.out}/")
    typer.echo(result.table.markdown(), nl=False)
    for note in result.notes:
        say(f"note: {note}")
    for claim in result.claims:
        say(claim.line(driver.id))
    return result.holds


def _planned(driver: Driver, setting: Setting) -> bool:
    """Print what a driver costs."""
    if setting.size == Size.paper:
        _print_plan(driver, setting)
    else:
        say(f"{driver.id} {driver.name}: about {_minutes(driver)} on two idle cores for three seeds.")
    return True


def _print_plan(driver: Driver, setting: Setting) -> float:
    """Print what a driver costs at the paper's size; return the hours on the slower device."""
    from hvp_engine.experiments.running import plan  # noqa: PLC0415 - keeps the list quick

    with output_to_errors():
        parts = plan(driver.name, setting)
    if not parts:
        say(f"{driver.id} {driver.name}: the paper's size is the small one, about {_minutes(driver)} on two cores.")
        return 0.0
    say(f"{driver.id} {driver.name}: predicted at the paper's size")
    hours = _sum(parts)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("part", overflow="fold")
    for title in ("FLOP", "memory", *(f"{device}, h" for device in hours)):
        table.add_column(title, justify="right", no_wrap=True)
    for part in parts:
        cells = (format_number(part.hours[device], 3) for device in hours)
        table.add_row(Text(part.what), format_flop(part.flop), format_bytes(part.bytes), *cells)
    whole = (format_number(value, 3) for value in hours.values())
    flop, most = sum(part.flop for part in parts), max(part.bytes for part in parts)
    table.add_row("all of it", format_flop(flop), format_bytes(most), *whole)
    console().print(table)
    return max(hours.values())


def _sum(parts: Sequence[PlannedPart]) -> Mapping[str, float]:
    return {device: sum(part.hours[device] for part in parts) for device in parts[0].hours}


def _list(drivers: Sequence[Driver]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("", "name", "claim", "small", "paper", "needs"):
        table.add_column(title, overflow="fold")
    for driver in drivers:
        cells = (driver.id, driver.name, driver.claim, _minutes(driver), "--plan says", _needs(driver))
        table.add_row(*map(Text, cells))
    console().print(table)
    say("Minutes are of all of them in turn, on two idle cores: each reads what an earlier one trained or computed.")


def _needs(driver: Driver) -> str:
    """Say which packages a driver needs: extras, and what no extra can bring."""
    from hvp_engine.experiments.data.packages import PACKAGES  # noqa: PLC0415 - other commands start sooner
    from hvp_engine.experiments.data.source import EXTRA  # noqa: PLC0415

    packages = [PACKAGES[name] for name in driver.reads if PACKAGES[name].install != EXTRA]
    extras = [f"hvp-engine[{','.join(driver.needs)}]"] if driver.needs else []
    return ", ".join(extras + [package.distribution for package in packages])


def _minutes(driver: Driver) -> str:
    return f"{driver.minutes:g} min"


def _folders(drivers: Sequence[Driver], out: Path | None, name: str) -> list[Path]:
    """Return the folder of each driver: results/NAME, or what --out says."""
    from hvp_engine.experiments.running import RESULTS  # noqa: PLC0415 - other commands start sooner

    if out is not None and name != _ALL:
        return [out]
    return [(out or RESULTS) / driver.name for driver in drivers]


def _refused(error: HvpEngineError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(_NOT_RUN)
