"""Several processes of one job: a server that has loaded the package forks them, as a launcher starts them.

The server never runs a backward pass and has one thread, so that its children may do both.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
PATIENCE = 600.0  # seconds after which the processes of a job hang
GRACE = 60.0  # and those that are left when one was killed


@dataclass
class Rank:
    """How one process ended.

    Attributes:
        status: Its exit code, negative for a signal.
        value: What its function returned.
        error: Type of the exception that it raised; empty where it raised none, or did not live to tell.
        message: The exception's message.
        log: What it printed.
    """

    status: int
    value: Any = None
    error: str = ""
    message: str = ""
    log: str = ""


class Launcher:
    """Runs functions in several processes at once."""

    def __init__(self, folder: Path) -> None:
        """Start the server.

        Args:
            folder: An empty one, for answers.
        """
        roots = [str(TESTS), *sys.path]
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import ranks; ranks.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(roots)},
        )

    def run(self, world: int, function: str, **arguments: Any) -> list[Rank]:
        """Call ``module:function(**arguments)`` in so many processes; return how each ended, by rank."""
        request = {"world": world, "function": function, "arguments": arguments, "folder": str(self._folder)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        statuses = json.loads(self._process.stdout.readline())
        found = []
        for rank, status in enumerate(statuses):
            answer = self._folder / f"answer-{rank}"
            told = pickle.loads(answer.read_bytes()) if answer.exists() else {}
            found.append(Rank(status, **told))
        return found

    def values(self, world: int, function: str, **arguments: Any) -> list[Any]:
        """Do so with processes none of which may fail; return what they returned."""
        found = self.run(world, function, **arguments)
        assert not [rank for rank in found if rank.error or rank.status], found
        return [rank.value for rank in found]

    def stop(self) -> None:
        """End the server."""
        self._process.communicate()  # which closes both pipes, and waits


def serve() -> None:
    """Fork the processes of every request, until there are no more."""
    import team_jobs  # noqa: F401 - loaded once, for all children

    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        statuses = launch(**json.loads(line))
        os.write(answers, (json.dumps(statuses) + "\n").encode())


def launch(world: int, function: str, arguments: dict[str, Any], folder: str) -> list[int]:
    """Fork processes that find each other; return their exit codes when all have ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        answer = Path(folder) / f"answer-{rank}"
        answer.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
            _perform(function, arguments, answer)
        children.append(child)
    end, statuses = time.monotonic() + PATIENCE, dict[int, int]()
    while len(statuses) < world:
        if any(status < 0 for status in statuses.values()):
            end = min(end, time.monotonic() + GRACE)  # as torchrun does; only gloo's connecting needs it
        for child in children:
            if child not in statuses:
                if time.monotonic() > end:
                    os.kill(child, signal.SIGKILL)
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    statuses[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [statuses[child] for child in children]


def _perform(function: str, arguments: dict[str, Any], answer: Path) -> None:
    """Call a function, write down what came of it, and end this process."""
    told: dict[str, Any] = {}
    log = io.StringIO()
    status = 1
    try:
        with contextlib.redirect_stderr(log), contextlib.redirect_stdout(log):
            warnings.simplefilter("ignore")
            module, _, name = function.partition(":")
            told["value"] = getattr(importlib.import_module(module), name)(**arguments)
        status = 0
    except BaseException as error:
        told |= {"error": type(error).__name__, "message": str(error)}
        traceback.print_exc(file=log)
    with contextlib.suppress(BaseException):
        answer.write_bytes(pickle.dumps({**told, "log": log.getvalue()}))
    os._exit(status)
