"""Two processes with a thread each against one process with two threads, on one and the same job.

``python benchmarks/strong_scaling.py`` alternates them and prints the ratio of the seconds that the jobs took, without
imports and start, for each way to share: 1 is as fast as two threads, and 0.9 is what is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = {"data": {"probes": 1, "data": 2}, "probes": {"probes": 2, "data": 1}}


def job(name: str) -> tuple[Any, Any, Any]:
    """Return a model, a loss and data that take some seconds."""
    import torch

    import hvp_engine as he
    from hvp_engine.experiments.models.gpt import GPT, GPTConfig

    torch.manual_seed(0)
    if name == "gpt":
        model = GPT(GPTConfig(vocabulary=512, context=64, layers=4, heads=4, width=128)).eval()
        data = [(torch.randint(0, 512, (4, 64)), torch.randint(0, 512, (4, 64))) for _ in range(4)]
        return model, he.losses.causal_lm, data
    layers = [torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Softplus(), torch.nn.Conv2d(32, 32, 3, padding=1)]
    model = torch.nn.Sequential(*layers, torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(32 * 256, 10))
    data = [(torch.randn(16, 3, 16, 16), torch.randint(0, 10, (16,))) for _ in range(4)]
    return model, he.losses.classification, data


def measure(name: str, way: str | None, steps: int, answer: Path) -> None:
    """Run a job in this process, with others or alone, and write down how long it took."""
    import torch.distributed as dist

    import hvp_engine as he

    model, loss, data = job(name)
    distributed = None if way is None else WAYS[way]
    options: dict[str, Any] = {"steps": steps, "probes": 4, "check": False, "progress": False}
    he.slq(model, loss, "module", data=data, distributed=distributed, **{**options, "steps": 2})
    if way is not None:
        dist.barrier()
    begun = time.perf_counter()
    he.slq(model, loss, "module", data=data, distributed=distributed, **options)
    if os.environ.get("RANK", "0") == "0":
        answer.write_text(json.dumps(time.perf_counter() - begun))


def seconds(name: str, way: str | None, steps: int) -> float:
    """Time a job in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "seconds"
        own = [
            __file__,
            "--measure",
            name,
            str(answer),
            "--steps",
            str(steps),
            *([] if way is None else ["--way", way]),
        ]
        several = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
        threads = {"OMP_NUM_THREADS": "2" if way is None else "1"}
        command = [sys.executable, *([] if way is None else several), *own]
        subprocess.run(command, check=True, env={**os.environ, **threads}, stderr=subprocess.DEVNULL)
        return float(json.loads(answer.read_text()))


def main() -> None:
    """Alternate, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--measure", nargs=2, metavar=("JOB", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], given.way, given.steps, Path(given.measure[1]))
        return
    for name in ("gpt", "cnn"):
        for way in WAYS:
            ratios = []
            for _ in range(given.rounds):
                alone = seconds(name, None, given.steps)
                ratios.append(alone / seconds(name, way, given.steps))
            low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
            print(
                f"{name}, 2 processes by {way}: {middle:.2f} of two threads' speed ({low:.2f} to {high:.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
