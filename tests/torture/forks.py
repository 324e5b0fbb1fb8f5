"""Processes by the hundred: a server that has loaded PyTorch and forks a child for every call, which may be killed.

The server never runs a backward pass and has one thread, so that its children may do both.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
INTERRUPTED = 130  # exit code of a child that Ctrl-C ended
PATIENCE = 900.0  # seconds after which a child hangs


@dataclass
class Outcome:
    """How a child ended.

    Attributes:
        status: Its exit code, negative for a signal.
        value: What its function returned.
        error: Type of the exception that it raised; empty where it raised none, or did not live to tell.
        message: The exception's message.
        log: Where it was raised, and what the child printed.
        warnings: Messages of the warnings that it gave.
    """

    status: int
    value: Any = None
    error: str = ""
    message: str = ""
    log: str = ""
    warnings: list[str] = field(default_factory=list)


class Server:
    """Forks children; one at a time."""

    def __init__(self, folder: Path) -> None:
        """Start it.

        Args:
            folder: An empty one, for temporary files and answers.
        """
        self.temporary = folder / "temporary"
        self.temporary.mkdir(parents=True)
        self._answer, self._log = folder / "answer", folder / "log"
        roots = [*(str(TESTS / name) for name in ("torture", "jobs", "")), *sys.path]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", "import forks; forks.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(roots), "TMPDIR": str(self.temporary)},
        )
        self._pid = 0

    def call(self, function: str, **arguments: Any) -> None:
        """Begin a call of ``module:function`` in a new child."""
        for path in (self._answer, self._log):
            path.unlink(missing_ok=True)
        request = {"function": function, "arguments": arguments, "answer": str(self._answer), "log": str(self._log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._pid = self._line()

    def ends_within(self, seconds: float) -> bool:
        """Wait for the child's end, or some time; say whether it has ended."""
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def send(self, number: int) -> None:
        """Send a signal to the child, which is not reaped before the next call: nobody else has its number."""
        os.kill(self._pid, number)

    def outcome(self) -> Outcome:
        """Wait for the child's end."""
        if not self.ends_within(PATIENCE):
            self.send(signal.SIGKILL)
            raise AssertionError(f"The child hangs: {self._printed()}")
        outcome = Outcome(self._line())
        with contextlib.suppress(FileNotFoundError):
            outcome = Outcome(outcome.status, **pickle.loads(self._answer.read_bytes()))
        outcome.log += self._printed()
        return outcome

    def run(self, function: str, **arguments: Any) -> Outcome:
        """Call a function in a new child and wait for its end."""
        self.call(function, **arguments)
        return self.outcome()

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _line(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def _printed(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def serve() -> None:
    """Do a server's work."""
    # Once for all children: PyTorch and the product, and what PyTorch loads at the first backward pass.
    import campaign  # noqa: F401
    import sympy  # noqa: F401

    gc.collect()
    gc.freeze()  # what is loaded stays: children need not look through it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in the background ignore it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while line := sys.stdin.buffer.readline():
        pid = os.fork()
        if pid == 0:
            _child(json.loads(line))
        print(pid, flush=True)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        print(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, flush=True)
        select.select([sys.stdin], [], [])  # its number is free for another process only from here on
        os.waitpid(pid, 0)


def _child(request: dict[str, Any]) -> None:
    """Call the function, leave word of it, and end."""
    code = INTERRUPTED
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT, 0o666)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.close(log)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        module, name = request["function"].split(":")
        answer: dict[str, Any] = {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                answer["value"] = getattr(importlib.import_module(module), name)(**request["arguments"])
            except Exception as error:
                answer = {"error": type(error).__name__, "message": str(error), "log": traceback.format_exc()}
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            answer["warnings"] = [f"{one.category.__name__}: {one.message}" for one in caught]
        _leave(Path(request["answer"]), answer)
        code = 0
    except KeyboardInterrupt:  # after which another one may come at any moment
        traceback.print_exc()
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _leave(path: Path, answer: dict[str, Any]) -> None:
    """Write an answer whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(pickle.dumps(answer))
    os.replace(file.name, path)
