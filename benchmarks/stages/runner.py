"""Runs stages in order of value, each under a time limit, inside one budget; what was found is on disk at once.

This process never imports torch. The stages run in a worker that keeps its context from stage to stage; one that fails,
hangs or dies costs its own stage, and the next one gets a fresh worker, for an error may have poisoned the device's
context. A worker writes one JSON object per line.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]
Emit = Callable[..., None]
_LEAST = 5.0  # seconds under which no stage is begun


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: What rows and tables call it.
        limit: Seconds after which it is stopped.
        module: Where its ``run(emit, device, small)`` is.
    """

    name: str
    limit: float
    module: str


@dataclass
class Rows:
    """What the stages found, on disk row by row, and as a table after every stage."""

    out: Path
    table: Callable[[Sequence[Row]], str]
    rows: list[Row] = field(default_factory=list)

    def keep(self, row: Row) -> None:
        """Append a row to ``results.jsonl``, and to what is known."""
        self.rows.append(row)
        with (self.out / "results.jsonl").open("a") as sink:
            sink.write(json.dumps(row) + "\n")
        if row.get("end"):
            (self.out / "results.md").write_text(self.table(self.rows))


class Worker:
    """A process that runs stages by name, one after another."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, start_new_session=True
            )
        self._left = b""

    def run(self, stage: Stage, seconds: float, keep: Callable[[Row], None]) -> bool:
        """Run one stage and keep its rows; return whether the worker may go on with another."""
        began = time.monotonic()
        try:
            self._input.write(f"{stage.name}\n".encode())
            self._input.flush()
        except BrokenPipeError:
            pass  # it is dead, which its output says
        for row in self._rows(began + seconds):
            keep({"stage": stage.name, **row})
            if row.get("end"):
                return bool(row["ok"])
        taken = time.monotonic() - began
        reason = f"stopped at its limit of {seconds:.0f} s" if taken >= seconds else "the process died"
        keep({"stage": stage.name, "end": True, "ok": False, "seconds": round(taken, 2), "error": reason})
        return False

    def stop(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def _rows(self, deadline: float) -> Any:
        """Yield rows until the deadline, or the end of the output."""
        output = self._process.stdout
        assert output is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(output, selectors.EVENT_READ)
            while True:
                line, found, rest = self._left.partition(b"\n")
                if found:
                    self._left = rest
                    yield json.loads(line)
                    continue
                left = deadline - time.monotonic()
                if left <= 0 or not waiting.select(left):
                    return
                more = os.read(output.fileno(), 1 << 16)
                if not more:
                    return
                self._left += more


def run_stages(stages: Sequence[Stage], command: Sequence[str], rows: Rows, budget: float) -> None:
    """Run stages in turn by workers that a command starts.

    Args:
        stages: What is run, in this order.
        command: Starts a worker that calls `serve`.
        rows: Where the results are kept.
        budget: Seconds for all of them.
    """
    began, worker = time.monotonic(), None
    try:
        for stage in stages:
            left = budget - (time.monotonic() - began)
            if left < _LEAST:
                rows.keep({"stage": stage.name, "end": True, "ok": None, "seconds": 0, "error": "no time was left"})
                continue
            worker = worker or Worker(command, rows.out / "stderr.log")
            if not worker.run(stage, min(stage.limit, left), rows.keep):
                worker.stop()
                worker = None
    finally:
        if worker is not None:
            worker.stop()


def serve(stages: Sequence[Stage], context: Callable[[], tuple[Any, ...]], counts: Callable[[], Row]) -> None:
    """Run the stages that the standard input names, and print their rows; return after one that failed.

    Args:
        stages: Those that may be named.
        context: Makes what every stage is given after ``emit``; called once, inside the first stage's time.
        counts: Facts to add to the end of every stage.
    """
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the rows
    modules, given = {stage.name: stage.module for stage in stages}, None

    def write(row: Row) -> None:
        rows.write(json.dumps(row, default=str) + "\n")
        rows.flush()

    for name in map(str.strip, sys.stdin):
        began = time.perf_counter()
        end: Row = {"ok": True}
        try:
            given = given or context()
            importlib.import_module(modules[name]).run(lambda **facts: write(facts), *given)
        except Exception as error:  # whatever a stage raises is its result
            said = f"{type(error).__name__}: " + str(error).strip().partition("\n")[0]
            end = {"ok": False, "error": said[:500], "trace": traceback.format_exc()[-3000:]}
        write({"end": True, "seconds": round(time.perf_counter() - began, 2), **end, **counts()})
        if not end["ok"]:
            return
