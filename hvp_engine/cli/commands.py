"""The command ``hvp-engine``: its commands, and what their ends mean."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
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
    Distributed,
    Distribution,
    Drawn,
    FirstProbe,
    HeadCurvature,
    HeadCurvatureTolerance,
    Json,
    Kept,
    Matrix,
    Memory,
    Microbatch,
    Orthogonal,
    Out,
    Precision,
    Preconditioned,
    Probes,
    Quiet,
    Reorthogonalize,
    Seed,
    Steps,
    Target,
    Tolerance,
)
from hvp_engine.cli.between_blocks import off_diagonal
from hvp_engine.cli.eigen import eigsh
from hvp_engine.cli.estimators import diagonal, norms, trace
from hvp_engine.cli.experiment import experiment
from hvp_engine.cli.finished import compare, export, merge
from hvp_engine.cli.job_file import load_job, output_to_errors
from hvp_engine.cli.jobs import compute
from hvp_engine.cli.options import blocks_of, processes_of, tolerance_of
from hvp_engine.cli.output import console, print_spectra, say
from hvp_engine.cli.plots import plot
from hvp_engine.cli.runs import show
from hvp_engine.errors import HvpEngineError
from hvp_engine.processes.failures import speaks
from hvp_engine.processes.launching import launched_rank
from hvp_engine.system.phases import showing
from hvp_engine.system.versions import package_version

_NOT_FIT, _NOT_EXAMINED = 1, 2  # exit codes of the doctor
_INTERRUPTED = 130  # the shell's code for an end by Ctrl-C, which typer returns
_RESUMED = ("slq", "eigsh", "trace", "diagonal", "norms", "off-diagonal", "demo", "experiment")
_ENDS = (
    "Exit codes: 0, done. 1, an error, which one message explains; or doctor finds the model not fit, or a claim of "
    "experiment --check fails. 2, an option or argument is missing, unknown or of the wrong type, doctor could not "
    "examine the model, or an experiment could not be run. 130, interrupted by Ctrl-C; 143, ended by SIGTERM."
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # so that help texts are shown as they are written, brackets and all
    epilog=_ENDS,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"hvp-engine {package_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hessian spectra of neural networks, block by block."""


def demo(
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Run folder: numbers, manifest, figures and checkpoints go there."),
    ] = Path("hvp-engine-demo"),
    quiet: Quiet = False,
) -> None:
    """Train a small GPT and compute its spectra: a first try.

    It learns Python's own sources, and takes two to three minutes on two cores. The same command again resumes.
    """
    from hvp_engine.experiments import demo as driver  # noqa: PLC0415 - keeps the other commands quick to start

    with output_to_errors():
        spectra = driver.run(out, progress=not quiet)
    print_spectra(spectra)
    say(f"Figures and results are in {out}/: spectra.png, js_distance.png, manifest.json, spectra.safetensors")


def doctor(
    target: Target,
    blocks: Blocks = None,
    precision: Arithmetic = Precision.fp32,
    seconds: Annotated[float, typer.Option(metavar="SECONDS", help="How long to examine, at most.")] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say whether the Hessian of your model can be trusted.

    And what its products cost.

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


def slq(
    target: Target,
    blocks: Blocks = None,
    tolerance: Tolerance = None,
    steps: Steps = None,
    probes: Probes = None,
    first_probe: FirstProbe = 0,
    seed: Seed = 0,
    distribution: Drawn = Distribution.gaussian,
    operator: Matrix = HESSIAN,
    precondition: Preconditioned = False,
    precision: Arithmetic = Precision.fp32,
    reorthogonalize: Orthogonal = Reorthogonalize.full,
    basis: Kept = PLAIN_BASIS,
    microbatch: Microbatch = None,
    memory: Memory = None,
    head_curvature: HeadCurvature = True,
    head_curvature_tolerance: HeadCurvatureTolerance = 0.0,
    check: Check = True,
    data_error: Annotated[bool, typer.Option("--data-error", help="Give bars for the choice of data too.")] = False,
    distributed: Distributed = None,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Compute the spectra of the blocks of your model.

    Densities, traces, extreme eigenvalues and distances between blocks, each with its 95 % bar. The same command again
    resumes an interrupted run.
    """
    from hvp_engine.api import slq as call  # noqa: PLC0415

    spectra, folder = compute(
        call,
        target,
        "",
        blocks=blocks,
        tolerance=tolerance_of(tolerance),
        steps=steps,
        probes=probes,
        first_probe=first_probe,
        seed=seed,
        distribution=distribution,
        operator=operator,
        precondition=precondition,
        precision=precision,
        reorthogonalize=reorthogonalize,
        basis=basis,
        microbatch=microbatch,
        memory=memory,
        head_curvature=head_curvature,
        head_curvature_tolerance=head_curvature_tolerance,
        check=check,
        data_error=data_error,
        distributed=processes_of(distributed),
        out=out,
        quiet=quiet,
    )
    if launched_rank() == 0:  # of several processes one tells
        print_spectra(spectra)
        say(f"Results are in {folder}/; draw them with: hvp-engine plot {folder}")


def plan(
    target: Target,
    device: Annotated[
        Device, typer.Option(metavar="NAME", help=f"Where slq would run: {', '.join(d.value for d in Device)}.")
    ] = Device.cpu,
    blocks: Blocks = None,
    tolerance: Tolerance = None,
    steps: Steps = None,
    probes: Probes = None,
    operator: Matrix = HESSIAN,
    precision: Arithmetic = Precision.fp32,
    basis: Kept = PLAIN_BASIS,
    microbatch: Microbatch = None,
    batches: Annotated[
        int | None, typer.Option(metavar="N", help="Batches to plan for, in place of those in the data.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", help="The same in entries of a batch's first tensor.")
    ] = None,
    processes: Annotated[
        int, typer.Option(metavar="N", help="How many processes share the job, each on such a device.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Predict time and memory of slq, without running it.

    A model on the device "meta" will do. The jobs of other commands are not priced.
    """
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
            processes=processes,
            progress=True,
        )
    typer.echo(json.dumps(planned.record(), indent=1) if as_json else planned.summary())


_COMMANDS: tuple[Callable[..., None], ...] = (  # as --help lists them
    demo,
    doctor,
    plan,
    slq,
    eigsh,
    trace,
    diagonal,
    norms,
    off_diagonal,
    show,
    plot,
    compare,
    merge,
    export,
    experiment,
)
for command in _COMMANDS:  # those of finished runs are not asked whether they show what they do
    app.command()(showing(None)(command) if command in (show, plot, compare, merge, export) else command)


def main() -> None:
    """Entry point: errors become one message and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED and launched_rank() == 0:
            resumed = (
                " The same command again goes on from the last checkpoint."
                if sys.argv[1:2] and sys.argv[1] in _RESUMED
                else ""
            )
            typer.echo(f"Interrupted.{resumed}", err=True)
        raise SystemExit(code or 0)
    except HvpEngineError as error:
        if speaks():
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
