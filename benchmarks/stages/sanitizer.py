"""Stage 9: compute-sanitizer's memcheck over small cases of the CUDA kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from .runner import Emit

_BENCHMARKS = Path(__file__).resolve().parents[1]
_CASES = """
import sys
sys.path[:0] = [{path!r}]
import torch
from validation.kernels import check_quadrature, check_record_step, check_reorthogonalize
device = torch.device("cuda", 0)
checks = (check_reorthogonalize, check_record_step, check_quadrature)
found = [each for check in checks for each in check(device, "cuda", True)]
sys.exit(0 if all(each.ok for each in found) else 3)
"""


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Emit what the tool says; raise where it found an error."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if device.type != "cuda" or not Path(tool).exists():
        emit(what="memcheck", found="there is no compute-sanitizer, or no card")
        return
    program = _CASES.format(path=str(_BENCHMARKS))
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", program]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    said = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    emit(what="memcheck", code=done.returncode, found=" ".join(said[-1:]), errors="\n".join(said[:20])[:2000])
    if done.returncode:
        raise AssertionError(f"memcheck ended with {done.returncode}: {(done.stderr or ' '.join(said))[-300:]}")
