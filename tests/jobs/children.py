"""Jobs in processes of their own, which a test kills: started here, and run by this file as a script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hvp_engine as he
from hvp_engine.jobs import checkpoint
from hvp_engine.krylov.lanczos import BatchedLanczos

BLOCKS = ["wte.weight", "ln_f.weight"]
HOLDING = "holding"


def job(out: Path | None, *, case: str = "gpt", blocks: Any = BLOCKS, **options: Any) -> he.Spectra:
    """Run the job that the children run."""
    from problems import CASES

    made = CASES[case]()
    settings = {"steps": 8, "probes": 2, "check": False, **options}
    return he.slq(made.model, made.loss, blocks, data=made.data, out=out, **settings)


class Child:
    """A job in a process of its own, which stops before a step and waits to be killed."""

    def __init__(self, out: Path, hold_before: int | None, *, every: float = 1e9, prelude: str = "", **options: Any):
        """Start it.

        Args:
            out: Its run folder.
            hold_before: The step before which it waits; None lets it run to its end.
            every: Seconds between its checkpoints.
            prelude: Python code that it runs first.
            options: Of :func:`job`.
        """
        arguments = {"out": str(out), "hold_before": hold_before, "every": every, "options": options}
        # A shell lets what it starts in the background ignore Ctrl-C, nohup SIGHUP, and so would this child.
        heed = "import signal as s; s.signal(s.SIGINT, s.default_int_handler); s.signal(s.SIGHUP, s.SIG_DFL)"
        code = f"{heed}\n{prelude}\nimport children; children.run({arguments!r})"
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )

    def wait_until_it_holds(self) -> None:
        """Return when it waits before its step."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == HOLDING:
                return
        raise AssertionError(f"The child ended before it was to be killed: {self.end()}")

    def send(self, *signals: int) -> None:
        """Send signals."""
        for number in signals:
            self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for its end; return its exit code, negative for a signal, and what it printed in the end."""
        out, errors = self._process.communicate(timeout=120)
        return self._process.returncode, out + errors

    def kill(self, *signals: int) -> int:
        """Kill it where it holds; return its exit code."""
        self.wait_until_it_holds()
        self.send(*signals)
        return self.end()[0]


def run(arguments: dict[str, Any]) -> None:
    """Do a child's work."""
    checkpoint._EVERY = arguments["every"]
    original, steps = BatchedLanczos.step, 0

    def step(state: BatchedLanczos) -> int:
        nonlocal steps
        if steps == arguments["hold_before"]:
            print(HOLDING, flush=True)
            time.sleep(100)
        steps += 1
        return original(state)

    BatchedLanczos.step = step  # type: ignore[method-assign]
    spectra = job(Path(arguments["out"]), **arguments["options"])
    print(json.dumps({"steps": steps, "seconds": spectra.manifest["seconds"]}))
