"""Jobs in files of the user's: loaded, called and checked, away from the command's own arguments and output."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hvp_engine.errors import ConfigurationError, HvpEngineError
from hvp_engine.processes.launching import take_own_gpu
from hvp_engine.system.formatting import raised


class JobOfUser(NamedTuple):
    """What a job file's function returned.

    Attributes:
        model: The network.
        loss: ``loss(model, batch)``.
        data: Batches, or None.
        blocks: The blocks that it asks for itself; None where it names none.
        precondition: An optimiser, or positive numbers by parameter name, for ``--precondition``; None without.
    """

    model: Any
    loss: Any
    data: Any
    blocks: Any = None
    precondition: Any = None


_REQUIRED = ("model", "loss", "data")
_POSITIONS = (*_REQUIRED, "blocks")  # in a tuple; what else there is goes by its key in a dict


def load_job(target: str) -> JobOfUser:
    """Call FILE:FUNCTION and check that it returned a model, a loss, data and, maybe, more, as a tuple or a dict.

    The file sees ``sys.argv`` as a script started without arguments does. Of several processes each has its own GPU.

    Raises:
        ConfigurationError: There is no such function, it cannot be called, or it returns something else.
    """
    take_own_gpu()
    file, colon, name = target.rpartition(":")
    if not colon or not file or not name:
        raise ConfigurationError(f"{target!r} is not of the form FILE:FUNCTION, for instance jobs.py:mnist.")
    path = Path(file).resolve()
    if not path.is_file():
        raise ConfigurationError(f"There is no file {file}.")
    # A file named like a module that is loaded already, json.py say, must not take its place.
    module_name = path.stem if path.stem not in sys.modules else f"hvp_engine_job_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{file} is not a Python file; it must end in .py.")
    module = importlib.util.module_from_spec(spec)
    arguments = sys.argv
    sys.argv = [str(path)]
    sys.path.insert(0, str(path.parent))  # so that it can import what lies beside it
    sys.modules[module_name] = module  # as pickle and dataclasses expect of a module
    try:
        _of_user(file, partial(spec.loader.exec_module, module))
        function = getattr(module, name, None)
        if not callable(function):
            raise ConfigurationError(f"{file} has no function {name!r}.")
        result = _of_user(target, function)
    finally:
        sys.argv = arguments
    return _job_of(target, result)


def _job_of(target: str, result: Any) -> JobOfUser:
    """Read what a job file's function returned.

    Raises:
        ConfigurationError: It is no tuple of three or four, and no dict with the keys of a job.
    """
    if isinstance(result, tuple) and len(result) in (len(_REQUIRED), len(_POSITIONS)):
        result = dict(zip(_POSITIONS, result, strict=False))
    if not isinstance(result, Mapping):
        raise ConfigurationError(
            f"{target} must return (model, loss, data), or (model, loss, data, blocks), or a dict with these as keys; "
            "use data=None for a loss without data."
        )
    unknown = [key for key in result if key not in JobOfUser._fields]
    missing = [key for key in _REQUIRED if key not in result]
    if unknown or missing:
        wrong = f"the key {unknown[0]!r}" if unknown else f"no key {missing[0]!r}"
        raise ConfigurationError(
            f"{target} returned a dict with {wrong}; its keys must be {', '.join(map(repr, _REQUIRED))}, and may be "
            f"{' and '.join(map(repr, JobOfUser._fields[len(_REQUIRED) :]))}."
        )
    return JobOfUser(**result)


@contextlib.contextmanager
def output_to_errors() -> Iterator[None]:
    """Send what is printed inside to standard error, so that standard output carries the command's results alone.

    Files, models and losses of users print, their libraries from C, too: the descriptor is redirected as well.
    """
    sys.stdout.flush()
    kept = _redirected_descriptor()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _redirected_descriptor() -> int | None:
    """Let descriptor 1 be another name of descriptor 2; return a copy of what it was, None where one is closed."""
    try:
        kept = os.dup(1)
    except OSError:
        return None
    try:
        os.dup2(2, 1)
    except OSError:
        os.close(kept)
        return None
    return kept


def _of_user(what: str, function: Callable[[], Any]) -> Any:
    """Run code of the user's; say where an exception in it came from, which is not the place for a traceback of ours.

    Raises:
        ConfigurationError: It raised, or wanted to end the process.
    """
    try:
        return function()
    except HvpEngineError:
        raise
    except SystemExit as error:
        raise ConfigurationError(
            f"{what} ended the process (SystemExit: {error.code}){_place(error)}: it must give the job without "
            "arguments of the command line; put what a script does under `if __name__ == '__main__':`."
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"{what} raised {raised(error)}{_place(error)}. It must run, without arguments, to give the job."
        ) from error


def _place(error: BaseException) -> str:
    """Say in which of the user's lines it happened: the last one that is not of an installed library."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame for frame in frames if f"{os.sep}lib{os.sep}python" not in frame.filename and frame.filename[:1] != "<"
    ]
    last = (own or list(frames))[-1]
    return f" ({last.filename}, line {last.lineno})"
