"""What the options of the commands mean that are more than a number or a word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvp_engine.cli.job_file import JobOfUser
from hvp_engine.errors import ConfigurationError
from hvp_engine.processes.launching import is_launched

_UNNAMED = "w1"  # the target of a number without a name, as in `Targets.parse`
_MOST_GIBIBYTES = 1 << 32


def blocks_of(given: list[str] | None, job: JobOfUser) -> Any:
    """Return the --blocks options as a block specification, or else the blocks that the job file asks for.

    Raises:
        ConfigurationError: An option is malformed, or a block is named twice.
    """
    if not given:
        return job.blocks
    if len(given) == 1 and given[0] in ("full", "parameter", "module"):
        return given[0]
    named: dict[str, list[str]] = {}
    for item in given:
        name, equals, globs = (part.strip() for part in item.partition("="))
        if not name or (equals and not globs):
            raise ConfigurationError(f"Option --blocks {item!r} is not of the form NAME=GLOB[,GLOB...].")
        if not equals and name in ("parameter", "module"):
            raise ConfigurationError(f"Option --blocks {name} names all blocks; leave the other --blocks out.")
        if name in named:
            raise ConfigurationError(
                f"Option --blocks names {name!r} twice; give its globs in one: --blocks "
                f"{name}={','.join([*named[name], globs or name])}"
            )
        named[name] = [glob.strip() for glob in globs.split(",")] if equals else ["*"] if name == "full" else [name]
    return named


def folder_of(target: str, command: str = "") -> Path:
    """Return the run folder of a job file's function, where none is given.

    Args:
        target: FILE:FUNCTION.
        command: What is computed, where several commands must not meet in one folder.
    """
    file, _, function = target.rpartition(":")
    return Path("runs") / "-".join(part for part in (Path(file).stem, function, command) if part)


def precondition_of(asked: bool, job: JobOfUser, target: str) -> Any:
    """Return what ``--precondition`` divides by; None where it is not asked for.

    Raises:
        ConfigurationError: It is asked for, and the job file gives nothing to divide by.
    """
    if asked and job.precondition is None:
        raise ConfigurationError(
            f"Option --precondition needs an optimizer or positive numbers by parameter name, and {target} returns "
            "none: let it return a dict, {'model': model, 'loss': loss, 'data': data, 'precondition': optimizer}."
        )
    return job.precondition if asked else None


def bytes_of(gibibytes: float | None) -> int | None:
    """Return the --memory option in bytes.

    Raises:
        ConfigurationError: It is no amount of memory.
    """
    if gibibytes is None:
        return None
    if not 0 < gibibytes <= _MOST_GIBIBYTES:
        raise ConfigurationError(
            f"Option --memory {gibibytes:g} is no amount of memory; give GiB, for instance --memory 8."
        )
    return max(1, int(gibibytes * 2**30))


def tolerance_of(given: Sequence[str] | None) -> dict[str, float] | None:
    """Return the --tolerance options as :func:`hvp_engine.slq` takes them; None where there are none.

    Raises:
        ConfigurationError: One is neither a number nor NAME=NUMBER, or a target is named twice.
    """
    targets: dict[str, float] = {}
    for item in given or ():
        name, _, number = (part.strip() for part in item.rpartition("="))
        try:
            value = float(number)
        except ValueError:
            raise ConfigurationError(
                f"Option --tolerance {item!r} is neither a number nor NAME=NUMBER, for instance --tolerance 0.02 or "
                "--tolerance js=0.01."
            ) from None
        target = name or _UNNAMED
        if target in targets:
            raise ConfigurationError(f"Option --tolerance has the target {target!r} twice; give it once.")
        targets[target] = value
    return targets or None


def pairs_of(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """Return options of the form NAME=VALUE as a mapping.

    Args:
        option: How it is called, for messages.
        given: What was typed.

    Raises:
        ConfigurationError: One has another form, or a name is there twice.
    """
    pairs: dict[str, str] = {}
    for item in given or ():
        name, _, value = (part.strip() for part in item.partition("="))
        if not name or not value:
            raise ConfigurationError(f"Option {option} {item!r} is not of the form NAME=VALUE.")
        if name in pairs:
            raise ConfigurationError(f"Option {option} names {name!r} twice; give it once.")
        pairs[name] = value
    return pairs


def processes_of(given: str | None) -> str | dict[str, int] | None:
    """Return the --distributed option as :func:`hvp_engine.slq` takes it; where there is none, as torchrun started us.

    Raises:
        ConfigurationError: It is none of its forms.
    """
    if given is None:
        return "auto" if is_launched() else None
    if given in ("auto", "off"):
        return None if given == "off" else given
    axes = pairs_of("--distributed", given.split(","))
    if not all(count.isascii() and count.isdigit() for count in axes.values()):
        raise ConfigurationError(
            f"Option --distributed {given!r} is neither auto, nor off, nor of the form probes=P,data=D with numbers of "
            "processes."
        )
    return {axis: int(count) for axis, count in axes.items()}
