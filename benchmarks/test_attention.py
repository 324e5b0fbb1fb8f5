"""Attention and its derivatives: time against PyTorch's math path, memory against the length.

Run with `pytest benchmarks/test_attention.py`; ratios are of medians timed alternately, kept in `extra_info`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timing import CPU, seconds
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hvp_engine.ops.attention import attention

WIDTH = 64
PASSES = ("forward", "backward", "second")


def math_path(*args: Any, **kwargs: Any) -> Tensor:
    """Return the attention of PyTorch that has second derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*args, **kwargs)


def make_inputs(length: int, heads: int, device: torch.device = CPU) -> tuple[list[Tensor], list[Tensor]]:
    """Query, key, value as a fused projection lays them out, the output's gradient, and three tangents."""
    generator = torch.Generator().manual_seed(0)
    fused = torch.randn(1, length, 7 * heads * WIDTH, generator=generator).to(device)
    parts = [t.unflatten(-1, (heads, WIDTH)).transpose(1, 2) for t in fused.chunk(7, -1)]
    return [t.detach().requires_grad_() for t in parts[:4]], parts[4:]


def run_passes(function: Callable[..., Tensor], inputs: list[Tensor], tangents: list[Tensor]) -> list[float]:
    """Time forward, backward (with graph) and second backward to every input."""
    *primals, grad_out = inputs
    found: dict[str, Any] = {}

    def forward() -> None:
        found["out"] = function(*primals)

    def backward() -> None:
        found["grads"] = torch.autograd.grad(found["out"], primals, grad_out, create_graph=True)

    def second() -> None:
        torch.autograd.grad(found["grads"], inputs, tangents)

    return [seconds(run, grad_out.device) for run in (forward, backward, second)]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize(("length", "heads", "rounds"), [(256, 12, 9), (1024, 12, 5), (2048, 12, 3), (4096, 2, 3)])
def test_time_against_the_math_path(
    benchmark: Any, device: torch.device, length: int, heads: int, rounds: int, causal: bool
) -> None:
    """The second backward must be 1.5 times faster from T = 1024, forward and backward not slower."""
    inputs, tangents = make_inputs(length, heads, device)
    functions = {
        "fused": partial(attention, is_causal=causal),
        "math": partial(math_path, is_causal=causal),
    }
    times = {name: [] for name in functions}
    if device.type == "cuda":
        run_passes(functions["fused"], inputs, tangents)  # compiles the kernels
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(run_passes(function, inputs, tangents))
    median = {name: [statistics.median(t) for t in zip(*rows, strict=True)] for name, rows in times.items()}
    ratio = [slow / fast for slow, fast in zip(median["math"], median["fused"], strict=True)]
    for name, fast, gain in zip(PASSES, median["fused"], ratio, strict=True):
        benchmark.extra_info[f"{name}_ms"] = round(1e3 * fast, 2)
        benchmark.extra_info[f"{name}_times_faster"] = round(gain, 2)
    print(f"\nT={length} heads={heads} causal={causal}: {benchmark.extra_info}")
    benchmark.pedantic(run_passes, (functions["fused"], inputs, tangents), rounds=1)
    assert ratio[2] >= (1.5 if length >= 1024 else 1.0)
    assert sum(median["math"][:2]) >= sum(median["fused"][:2])


MEMORY_SCRIPT = """
import sys
from pathlib import Path
import torch
from test_attention import attention, make_inputs, run_passes
torch.set_num_threads(2)

def resident(field):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024

run_passes(attention, *make_inputs(64, 12))
data = make_inputs(int(sys.argv[1]), 12)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
run_passes(attention, *data)
print(resident("VmHWM") - before)
"""


def test_memory_is_linear_in_the_length(benchmark: Any) -> None:
    """Peak growth of resident memory over all three passes, results included."""

    def measure() -> dict[int, float]:
        growth = {}
        for length in (1024, 2048, 4096):
            command = [sys.executable, "-c", MEMORY_SCRIPT, str(length)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
            growth[length] = float(done.stdout)
        return growth

    growth = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info.update({f"peak_growth_mib_{length}": round(mib, 1) for length, mib in growth.items()})
    print(f"\npeak growth in MiB: {growth}")
    assert growth[4096] < 4 * 1.25 * growth[1024]
    assert growth[4096] < 12 * 4096**2 * 4 / 2**20 / 4  # a quarter of one T x T matrix per head
