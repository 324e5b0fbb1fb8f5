"""The command under torchrun: one table, one error, and a restart that goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from team_jobs import job, numbers

from hvp_engine.results.spectra import Spectra

JOB = """
import os, signal
from problems import mlp
from hvp_engine.jobs import checkpoint
from hvp_engine.krylov.lanczos import BatchedLanczos

def make():
    case = mlp()
    return case.model, case.loss, case.data, "module"

def fragile():
    checkpoint._EVERY = 0.0
    plain = BatchedLanczos.step
    def step(state):
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1" and state.position == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        print("step", state.position, "of rank", os.environ["RANK"], "try", os.environ["TORCHELASTIC_RESTART_COUNT"])
        return plain(state)
    BatchedLanczos.step = step
    return make()
"""
OPTIONS = ["--steps", "6", "--probes", "3", "--precision", "fp64", "--no-check"]


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "job.py").write_text(JOB)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    roots = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": roots}
    return subprocess.run(
        [*launcher, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_shares_its_job_and_speaks_once(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "-m", "hvp_engine", "slq", "job.py:make", *OPTIONS, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Results are in run/") == 1
    found = numbers(Spectra.load(tmp_path / "run"))
    for name, expected in job("mlp", None)["numbers"].items():
        np.testing.assert_allclose(found[name]["alphas"], expected["alphas"], rtol=1e-9, atol=1e-12)


def test_an_error_is_said_once(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "-m", "hvp_engine", "slq", "job.py:make", "--blocks", "nothing", "--out", "run")
    assert done.returncode != 0
    assert len(re.findall("^error: ", done.stderr, re.MULTILINE)) == 1, done.stderr


@pytest.mark.parametrize("way", ["data=2", "probes=2"])
def test_a_restart_goes_on_from_the_checkpoint(tmp_path: Path, way: str) -> None:
    done = torchrun(
        tmp_path,
        *("--max-restarts", "1", "-m", "hvp_engine", "slq", "job.py:fragile", *OPTIONS),
        *("--distributed", way, "--out", "run"),
    )
    assert done.returncode == 0, done.stderr
    second = [line for line in done.stderr.splitlines() if line.startswith("step") and line.endswith("try 1")]
    assert second and "step 0 of rank 1 try 1" not in second  # printed to standard error, as all that jobs print
    found = numbers(Spectra.load(tmp_path / "run"))
    for name, expected in job("mlp", None)["numbers"].items():
        np.testing.assert_allclose(found[name]["alphas"], expected["alphas"], rtol=1e-9, atol=1e-12)
