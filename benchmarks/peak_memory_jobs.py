"""Peak memory of jobs of several kinds, each in a process of its own: as `plan` predicts it, and as the kernel saw it.

Run ``python benchmarks/peak_memory_jobs.py [JOB ...]``; ``--list`` names the jobs. A job is planned and run with a
``memory=`` that is about what it needs, so that graphs, vectors and temporaries meet their limits. What is compared is
how far resident memory rose above what the process had when model and data were made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig, paper_blocks
from hvp_engine.problem.batches import map_tensors
from hvp_engine.system.memory import peak_memory

MIB = 1 << 20
Made = tuple[nn.Module, Callable[..., Any], Any, Iterable[Any], dict[str, Any]]


def _cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def _tokens(config: GPTConfig, batches: int, samples: int) -> list[Tensor]:
    return [torch.randint(0, config.vocabulary, (samples, config.context)) for _ in range(batches)]


def gpt_blocks() -> Made:
    """Paper blocks of a GPT: graphs that do not all stay, and vectors."""
    config = GPTConfig(vocabulary=1024, context=256, layers=2, heads=4, width=128)
    options = {"steps": 2, "probes": 8, "memory": 350 * MIB, "head_curvature": False}
    return GPT(config).eval(), he.losses.causal_lm, paper_blocks(config, (0,)), _tokens(config, 3, 4), options


def basis() -> Made:
    """Full Hessian with many steps: the basis dominates."""
    model = nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10))
    data = [(torch.randn(64, 64), torch.randint(0, 10, (64,)))]
    return model, _cross_entropy, None, data, {"steps": 120, "probes": 3, "memory": 550 * MIB}


def probes() -> Made:
    """Many probes on a small net: vectors and their passes."""
    model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10))
    data = [(torch.randn(64, 32), torch.randint(0, 10, (64,)))]
    return model, _cross_entropy, "module", data, {"steps": 10, "probes": 400, "memory": 600 * MIB}


def convolutions() -> Made:
    """Make a CNN with large activations: graphs dominate, micro-batches."""
    widths = (3, 8, 8, 8, 8)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    data = [(torch.randn(32, 3, 128, 128), torch.randint(0, 10, (32,)))]
    return model, _cross_entropy, None, data, {"steps": 2, "probes": 1, "memory": 500 * MIB}


def head() -> Made:
    """Form the head's curvature, and hold it."""
    config = GPTConfig(vocabulary=2048, context=256, layers=2, heads=4, width=160)
    options = {"steps": 12, "probes": 1, "memory": 1000 * MIB}
    blocks = {name: found for name, found in paper_blocks(config).items() if name[0] == "1"}
    return GPT(config).eval(), he.losses.causal_lm, blocks, _tokens(config, 1, 8), options


def waves() -> Made:
    """Streams in several waves."""
    config = GPTConfig(vocabulary=512, context=32, layers=2, heads=4, width=256)
    options = {"steps": 5, "probes": 4, "memory": 200 * MIB, "head_curvature": False}
    return GPT(config).eval(), he.losses.causal_lm, paper_blocks(config), _tokens(config, 1, 2), options


def bf16() -> Made:
    """Products in bfloat16, a rounded basis."""
    config = GPTConfig(vocabulary=1024, context=128, layers=4, heads=4, width=256)
    options = {"steps": 12, "probes": 1, "precision": "bf16", "basis": "bf16", "memory": 500 * MIB}
    return GPT(config).eval(), he.losses.causal_lm, None, _tokens(config, 1, 4), options


def fp64() -> Made:
    """Convert a copy of the model, everything twice as wide."""
    config = GPTConfig(vocabulary=1024, context=128, layers=2, heads=4, width=256)
    options = {"steps": 6, "probes": 2, "precision": "fp64", "memory": 600 * MIB}
    return GPT(config).eval(), he.losses.causal_lm, None, _tokens(config, 1, 4), options


JOBS = {job.__name__: job for job in (gpt_blocks, basis, probes, convolutions, head, waves, bf16, fp64)}


def planned(name: str) -> dict[str, Any]:
    """Plan a job."""
    model, loss, blocks, data, options = JOBS[name]()
    shapes = [map_tensors(lambda tensor: tensor.to("meta"), batch) for batch in data]  # only times need numbers
    found = he.plan(model, loss, blocks, data=shapes, **options)
    return {"predicted": found.peak, "parts": {**found.memory, **found.memory_needs.phases}}


def measured(name: str) -> dict[str, Any]:
    """Run a job, and return how far memory rose."""
    model, loss, blocks, data, options = JOBS[name]()
    with peak_memory(torch.device("cpu")) as peak:
        spectra = he.slq(model, loss, blocks, data=data, **options)
    return {"measured": peak.bytes, "budget": options["memory"], "plan": spectra.manifest["plan"]}


def main() -> None:
    """Print a line per job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*", choices=[[], *JOBS], help="which ones; all by default")
    parser.add_argument("--list", action="store_true", help="name the jobs")
    parser.add_argument("--child", choices=("planned", "measured"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{name}: {make.__doc__}" for name, make in JOBS.items()))
        return
    torch.manual_seed(0)
    if given.child:
        print(json.dumps({"planned": planned, "measured": measured}[given.child](given.jobs[0])))
        return
    for name in given.jobs or JOBS:
        found: dict[str, Any] = {}
        for child in ("planned", "measured"):
            command = [sys.executable, str(Path(__file__)), name, "--child", child]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found |= json.loads(done.stdout.splitlines()[-1])
        ratio = found["measured"] / found["predicted"]
        sizes = ", ".join(f"{key} {found[key] / MIB:.0f} MiB" for key in ("predicted", "measured", "budget"))
        share = found["measured"] / found["budget"]
        print(f"{name}: {sizes}; measured / predicted {ratio:.2f}, of the budget {share:.2f}")
        print("   ", {key: round(size / MIB) for key, size in found["parts"].items()}, found["plan"], flush=True)


if __name__ == "__main__":
    main()
