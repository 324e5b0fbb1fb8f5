"""GPT-2 124M, random weights, T = 1,024, one sequence: the paper's 25 blocks with 3 steps, against what `plan` says.

Run ``python benchmarks/gpt2_sweep.py`` on a machine with 16 GB to spare: it plans (calibrated), runs the job, and
prints seconds of a sweep and bytes at the peak, predicted and measured. ``--steps`` and ``--layers`` make it smaller.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import hvp_engine as he
from hvp_engine.experiments.gpt2_paper import CONFIG
from hvp_engine.experiments.models.gpt import GPT, paper_blocks
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.system.memory import peak_memory, resident

GIB = 1 << 30
BUDGET = 14 * GIB  # of 16: the rest is the model's, the interpreter's and the libraries'


def job(layers: int) -> tuple[Any, ...]:
    """Make model, loss, blocks and data."""
    torch.manual_seed(0)
    config = replace(CONFIG, layers=layers)
    data = [torch.randint(0, config.vocabulary, (1, config.context))]
    return GPT(config).eval(), he.losses.causal_lm, paper_blocks(config), data


def planned(layers: int, steps: int) -> dict[str, Any]:
    """Plan the job on this machine."""
    model, loss, blocks, data = job(layers)
    found = he.plan(model, loss, blocks, data=data, steps=steps, probes=1, memory=BUDGET)
    print(found, file=sys.stderr)
    sweeping = ("forward", "first backward", "second backwards", "reorthogonalisation")
    seconds = sum(part.seconds for name, part in found.prediction.parts.items() if name in sweeping)
    return {"predicted_sweep_s": seconds / sum(found.setting.sweeps), "predicted_gib": found.peak / GIB}


def measured(layers: int, steps: int) -> dict[str, Any]:
    """Run the job; the time of a sweep is the median of those of its steps."""
    model, loss, blocks, data = job(layers)
    times: list[float] = []
    sweep = HessianOperator.sweep

    def timed(self: HessianOperator, vectors: Any) -> Any:
        started = time.perf_counter()
        found = sweep(self, vectors)
        times.append(time.perf_counter() - started)
        return found

    HessianOperator.sweep = timed  # type: ignore[method-assign]
    with peak_memory(torch.device("cpu")) as peak:
        spectra = he.slq(model, loss, blocks, data=data, steps=steps, probes=1, memory=BUDGET)
    print(spectra.manifest["plan"], file=sys.stderr)
    assert peak.bytes is not None
    return {
        "sweep_s": sorted(times)[len(times) // 2],
        "sweeps_s": times,
        "measured_gib": peak.bytes / GIB,
        "total_gib": (resident().highest or 0) / GIB,
    }


def main() -> None:
    """Print both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=CONFIG.layers, help="of the model")
    parser.add_argument("--steps", type=int, default=3, help="of Lanczos")
    parser.add_argument("--child", choices=("planned", "measured"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps({"planned": planned, "measured": measured}[given.child](given.layers, given.steps)))
        return
    found: dict[str, Any] = {}
    for child in ("planned", "measured"):
        command = [sys.executable, str(Path(__file__)), "--child", child]
        command += ["--layers", str(given.layers), "--steps", str(given.steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    ratios = {
        "time_ratio": found["sweep_s"] / found["predicted_sweep_s"],
        "memory_ratio": found["measured_gib"] / found["predicted_gib"],
    }
    print(json.dumps({**found, **ratios}, indent=1))


if __name__ == "__main__":
    main()
