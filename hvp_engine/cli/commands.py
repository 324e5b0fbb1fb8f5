"""The command ``hvp-engine``: demo, doctor, plan, slq, show and plot."""

from __future__ import annotations

import io
import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hvp_engine.cli.job_file import load_job, output_to_errors
from hvp_engine.cli.options import blocks_of, bytes_of, tolerance_of
from hvp_engine.errors import HvpEngineError, printable
from hvp_engine.krylov.registry import STORAGES
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.table import summary_table
from hvp_engine.results.words import targets_text
from hvp_engine.system.formatting import shorten

_NOT_FIT, _NOT_EXAMINED = 1, 2  # exit codes of the doctor
_INTERRUPTED = 130  # the shell's code for an end by Ctrl-C, which typer returns
_LONGEST = 1000  # columns of what a run says of itself: it may be a stranger's

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Hessian spectra of neural networks, block by block.",
)


class _Precision(str, Enum):
    fp64, fp32, tf32, bf16 = "fp64", "fp32", "tf32", "bf16"


class _Distribution(str, Enum):
    gaussian, rademacher = "gaussian", "rademacher"


class _Reorthogonalize(str, Enum):
    full, selective, none = "full", "selective", "none"


_Basis = Enum("_Basis", {name: name for name in STORAGES}, type=str)  # type: ignore[misc]  # as many as are registered
_PLAIN_BASIS = _Basis("fp32")


class _Device(str, Enum):
    a100_80gb, a100_40gb, v100_32gb, v100_16gb = "a100-80gb", "a100-40gb", "v100-32gb", "v100-16gb"
    h100_80gb, cpu = "h100-80gb", "cpu"


_Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
_Target = Annotated[
    str, typer.Argument(metavar="FILE:FUNCTION", help="Function returning (model, loss, data), or blocks after them.")
]
_Blocks = Annotated[
    list[str] | None,
    typer.Option(
        "--blocks", help="full, parameter, module, a parameter name, or NAME=GLOB[,GLOB...]; repeat for more."
    ),
]
_Steps = Annotated[int | None, typer.Option(help="Lanczos steps; with --tolerance the most of them [100].")]
_Probes = Annotated[int | None, typer.Option(help="Random vectors per block; with --tolerance the most of them [10].")]
_Tolerance = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NUMBER|NAME=NUMBER",
        help="Half-width of the 95 % bars to stop at: relative to the standard deviation of the eigenvalues, or of w1, "
        "js, trace or density; repeat for more [0.02, unless --steps or --probes say how much to do].",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Arithmetic = Annotated[_Precision, typer.Option(help="Arithmetic of the products.")]
_Kept = Annotated[_Basis, typer.Option(help="Dtype of the kept Lanczos vectors.")]
_Microbatch = Annotated[int | None, typer.Option(help="Samples differentiated at once.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("hvp-engine-demo"),
    quiet: _Quiet = False,
) -> None:
    """Train a small GPT on Python's own sources and compute its Hessian spectra, block by block."""
    from hvp_engine.experiments import demo as driver  # noqa: PLC0415 - keeps the other commands quick to start

    with output_to_errors():
        spectra = driver.run(out, progress=not quiet)
    _print(spectra)
    _say(f"Figures and results are in {out}/: spectra.png, js_distance.png, manifest.json, spectra.safetensors")


@app.command()
def doctor(
    target: _Target,
    blocks: _Blocks = None,
    precision: _Arithmetic = _Precision.fp32,
    seconds: Annotated[float, typer.Option(help="About how long to examine.")] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say whether the Hessian of a model can be trusted, and what it costs.

    Exit code 0: nothing found that makes it wrong. 1: something was found. 2: the model could not be examined.
    """
    from hvp_engine.diagnosis.doctor import doctor as examine  # noqa: PLC0415

    try:
        with output_to_errors():
            job = load_job(target)
            report = examine(
                job.model,
                job.loss,
                blocks_of(blocks, job),
                data=job.data,
                precision=precision.value,
                seconds=seconds,
            )
    except HvpEngineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_NOT_EXAMINED) from None
    if json:
        typer.echo(report.to_json())
    else:
        _console().print(report)
    if not report.ok:
        raise typer.Exit(_NOT_FIT)


@app.command()
def slq(
    target: _Target,
    blocks: _Blocks = None,
    tolerance: _Tolerance = None,
    steps: _Steps = None,
    probes: _Probes = None,
    seed: Annotated[int, typer.Option(help="Seed of the probes.")] = 0,
    distribution: Annotated[
        _Distribution, typer.Option(help="Of the probes; rademacher misses eigenvectors on few coordinates.")
    ] = _Distribution.gaussian,
    precision: _Arithmetic = _Precision.fp32,
    reorthogonalize: Annotated[
        _Reorthogonalize, typer.Option(help="Against all vectors, all where needed, or two.")
    ] = _Reorthogonalize.full,
    basis: _Kept = _PLAIN_BASIS,
    microbatch: _Microbatch = None,
    memory: Annotated[float | None, typer.Option(help="Memory budget in GiB.")] = None,
    head_curvature: Annotated[
        bool, typer.Option(help="Form a linear head's curvature once, where that is cheaper.")
    ] = True,
    head_curvature_tolerance: Annotated[
        float, typer.Option(help="Share of the largest trace that it may lose by dropping vocabulary entries.")
    ] = 0.0,
    check: Annotated[bool, typer.Option(help="Test the second derivative first.")] = True,
    data_error: Annotated[bool, typer.Option("--data-error", help="Give bars for the choice of data too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder [default: runs/<file>-<function>].")] = None,
    quiet: _Quiet = False,
) -> None:
    """Compute the spectra of a model of your own; the same command again resumes an interrupted run."""
    from hvp_engine.api import slq as compute  # noqa: PLC0415

    folder = out or Path("runs") / f"{Path(target.rpartition(':')[0]).stem}-{target.rpartition(':')[2]}"
    with output_to_errors():
        job = load_job(target)
        spectra = compute(
            job.model,
            job.loss,
            blocks_of(blocks, job),
            data=job.data,
            tolerance=tolerance_of(tolerance),
            steps=steps,
            probes=probes,
            seed=seed,
            distribution=distribution.value,
            precision=precision.value,
            reorthogonalize=reorthogonalize.value,
            basis=basis.value,
            microbatch=microbatch,
            memory=bytes_of(memory),
            head_curvature=head_curvature,
            head_curvature_tolerance=head_curvature_tolerance,
            check=check,
            data_error=data_error,
            progress=not quiet,
            out=folder,
        )
    _print(spectra)
    _say(f"Results are in {folder}/; draw them with: hvp-engine plot {folder}")


@app.command()
def plan(
    target: _Target,
    device: Annotated[_Device, typer.Option(help="Where the job would run.")] = _Device.cpu,
    blocks: _Blocks = None,
    tolerance: _Tolerance = None,
    steps: _Steps = None,
    probes: _Probes = None,
    precision: _Arithmetic = _Precision.fp32,
    basis: _Kept = _PLAIN_BASIS,
    microbatch: _Microbatch = None,
    batches: Annotated[int | None, typer.Option(help="Batches to plan for, in place of those in the data.")] = None,
    tokens: Annotated[int | None, typer.Option(help="The same in entries of a batch's first tensor.")] = None,
    as_json: _Json = False,
) -> None:
    """Predict time, memory and setting of a job on a device, without running it; a model on "meta" will do."""
    from hvp_engine.planning.plan import plan as predict  # noqa: PLC0415

    with output_to_errors():
        job = load_job(target)
        planned = predict(
            job.model,
            job.loss,
            blocks_of(blocks, job),
            data=job.data,
            device=device.value,
            tolerance=tolerance_of(tolerance),
            steps=steps,
            probes=probes,
            precision=precision.value,
            basis=basis.value,
            microbatch=microbatch,
            batches=batches,
            tokens=tokens,
        )
    typer.echo(json.dumps(planned.record(), indent=1) if as_json else planned.summary())


@app.command()
def show(run: _Run, as_json: _Json = False) -> None:
    """Print the table of a run: numbers with their 95 % bars, what they cost, and what was not reached."""
    spectra = Spectra.load(run)
    if as_json:
        typer.echo(json.dumps(spectra.summarize().record(), indent=1))
        return
    _print(spectra)
    settings, notes = spectra.settings, spectra.manifest.get("notes")
    if "tolerance" in settings:
        _say(f"{'tolerance':16}{shorten(targets_text(settings['tolerance']), _LONGEST)}")
    ceilings = ("steps", "probes") if "tolerance" in settings else ()
    for key in ("steps", "probes", "seed", "distribution", "precision", "reorthogonalize", "basis"):
        if key in settings:
            _say(f"{key:16}{'at most ' * (key in ceilings)}{shorten(str(settings[key]), _LONGEST)}")
    for note in notes if isinstance(notes, list) else []:
        _say(f"{'note':16}{shorten(str(note), _LONGEST)}")


@app.command()
def plot(
    run: _Run,
    suffix: Annotated[str, typer.Option(help="png, pdf or svg.")] = "png",
) -> None:
    """Draw the densities and the distances of a run into its folder."""
    spectra = Spectra.load(run)
    for name, draw in (("spectra", spectra.plot), ("js_distance", spectra.plot_js)):
        path = run / f"{name}.{suffix}"
        draw(path)
        _say(str(path))


def _print(spectra: Spectra) -> None:
    """Print the table as wide as the terminal, or as long as its lines are where there is none."""
    if sys.stdout.isatty():
        console = _console()
        console.print(summary_table(spectra.summarize(), console.width))
        if spectra.data_error is not None:
            typer.echo(f"\n{spectra.data_error.summary()}")
    else:
        typer.echo(spectra.summary())


def _say(text: str) -> None:
    """Print a line that may quote what a stranger wrote."""
    typer.echo(printable(text))


def _console() -> Console:
    # A pipe has no width of its own: rather long lines there than cut numbers.
    return Console() if sys.stdout.isatty() else Console(width=200)


def main() -> None:
    """Entry point: errors become one message and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:
            resumed = (
                " The same command again goes on from the last checkpoint."
                if sys.argv[1:2] in (["slq"], ["demo"])
                else ""
            )
            typer.echo(f"Interrupted.{resumed}", err=True)
        raise SystemExit(code or 0)
    except HvpEngineError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
    except BrokenPipeError:  # whoever read the output, `head` say, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's last flush is quiet
        raise SystemExit(1) from None
    except Exception as error:
        # Usage errors of typer's parser carry their own text and exit code.
        show_usage = getattr(error, "show", None)
        if show_usage is None:
            raise
        show_usage()
        raise SystemExit(getattr(error, "exit_code", 2)) from None
