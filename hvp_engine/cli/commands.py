"""The command ``hvp-engine``: demo, doctor, plan, slq, eigsh, experiment, show and plot."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from hvp_engine.cli.arguments import (
    HESSIAN,
    PLAIN_BASIS,
    Arithmetic,
    Blocks,
    Check,
    Device,
    Distribution,
    HeadCurvature,
    Json,
    Kept,
    Matrix,
    Memory,
    Microbatch,
    Out,
    Precision,
    Probes,
    Quiet,
    Reorthogonalize,
    Seed,
    Steps,
    Target,
    Tolerance,
)
from hvp_engine.cli.eigen import eigsh
from hvp_engine.cli.experiment import experiment
from hvp_engine.cli.job_file import load_job, output_to_errors
from hvp_engine.cli.options import blocks_of, bytes_of, folder_of, tolerance_of
from hvp_engine.cli.output import console, print_spectra, say
from hvp_engine.cli.plots import plot
from hvp_engine.cli.runs import show
from hvp_engine.errors import HvpEngineError

_NOT_FIT, _NOT_EXAMINED = 1, 2  # exit codes of the doctor
_INTERRUPTED = 130  # the shell's code for an end by Ctrl-C, which typer returns

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Hessian spectra of neural networks, block by block.",
)
app.command()(eigsh)
app.command()(experiment)
app.command()(show)
app.command()(plot)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("hvp-engine-demo"),
    quiet: Quiet = False,
) -> None:
    """Train a small GPT on Python's own sources and compute its Hessian spectra, block by block."""
    from hvp_engine.experiments import demo as driver  # noqa: PLC0415 - keeps the other commands quick to start

    with output_to_errors():
        spectra = driver.run(out, progress=not quiet)
    print_spectra(spectra)
    say(f"Figures and results are in {out}/: spectra.png, js_distance.png, manifest.json, spectra.safetensors")


@app.command()
def doctor(
    target: Target,
    blocks: Blocks = None,
    precision: Arithmetic = Precision.fp32,
    seconds: Annotated[float, typer.Option(help="How long to examine, at most.")] = 60.0,
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
                progress=True,
            )
    except HvpEngineError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_NOT_EXAMINED) from None
    if json:
        typer.echo(report.to_json())
    else:
        console().print(report)
    if not report.ok:
        raise typer.Exit(_NOT_FIT)


@app.command()
def slq(
    target: Target,
    blocks: Blocks = None,
    tolerance: Tolerance = None,
    steps: Steps = None,
    probes: Probes = None,
    seed: Seed = 0,
    distribution: Annotated[
        Distribution, typer.Option(help="Of the probes; rademacher misses eigenvectors on few coordinates.")
    ] = Distribution.gaussian,
    operator: Matrix = HESSIAN,
    precision: Arithmetic = Precision.fp32,
    reorthogonalize: Annotated[
        Reorthogonalize, typer.Option(help="Against all vectors, against all where it matters, or against two.")
    ] = Reorthogonalize.full,
    basis: Kept = PLAIN_BASIS,
    microbatch: Microbatch = None,
    memory: Memory = None,
    head_curvature: HeadCurvature = True,
    head_curvature_tolerance: Annotated[
        float, typer.Option(help="Share of the largest trace that it may lose by dropping vocabulary entries.")
    ] = 0.0,
    check: Check = True,
    data_error: Annotated[bool, typer.Option("--data-error", help="Give bars for the choice of data too.")] = False,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Compute the spectra of a model of your own; the same command again resumes an interrupted run."""
    from hvp_engine.api import slq as compute  # noqa: PLC0415

    folder = out or folder_of(target)
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
            operator=operator.value,
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
    print_spectra(spectra)
    say(f"Results are in {folder}/; draw them with: hvp-engine plot {folder}")


@app.command()
def plan(
    target: Target,
    device: Annotated[Device, typer.Option(help="Where the job would run.")] = Device.cpu,
    blocks: Blocks = None,
    tolerance: Tolerance = None,
    steps: Steps = None,
    probes: Probes = None,
    operator: Matrix = HESSIAN,
    precision: Arithmetic = Precision.fp32,
    basis: Kept = PLAIN_BASIS,
    microbatch: Microbatch = None,
    batches: Annotated[int | None, typer.Option(help="Batches to plan for, in place of those in the data.")] = None,
    tokens: Annotated[int | None, typer.Option(help="The same in entries of a batch's first tensor.")] = None,
    as_json: Json = False,
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
            operator=operator.value,
            precision=precision.value,
            basis=basis.value,
            microbatch=microbatch,
            batches=batches,
            tokens=tokens,
            progress=True,
        )
    typer.echo(json.dumps(planned.record(), indent=1) if as_json else planned.summary())


def main() -> None:
    """Entry point: errors become one message and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED:
            resumed = (
                " The same command again goes on from the last checkpoint."
                if sys.argv[1:2] in (["slq"], ["eigsh"], ["demo"], ["experiment"])
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
