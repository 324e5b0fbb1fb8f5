"""The full Hessian of a GPT of 30M parameters, its Lanczos vectors in 8 bits or in a file, against fp32 in memory.

    python benchmarks/basis_storage.py                       # 12 GB of vectors in fp32, then 3 GB in 8 bits
    python benchmarks/basis_storage.py --storages int8 bf16-mmap --width 128 --layers 4      # 1M parameters, a minute

All start from the same vector and run in turn in one process. The distance of two spectra is Wasserstein-1 between
their Gauss quadratures, over the range of the fp32 one. The bytes of a basis are what it reserves; the rise of the
process's memory, which the graph is part of, is measured beside it (of a file it counts pages that the kernel keeps).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from results import machine
from torch import Tensor

import hvp_engine as he
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.registry import STORAGES, bytes_elsewhere, bytes_per_stream
from hvp_engine.krylov.settings import LanczosSettings
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.system.memory import peak_memory

BASELINE = "fp32"
MOST_BYTES, MOST_DISTANCE = 4e9, 0.005  # of the basis in memory; of the range


class Found(NamedTuple):
    """What one run found: nodes and weights of its quadrature, and what it took."""

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    bytes_here: int
    bytes_elsewhere: int
    rise: int | None
    orthogonality: float
    seconds: float
    products: float  # seconds of them


def run(operator: HessianOperator, name: str, steps: int) -> Found:
    """Run one stream with its vectors in a storage."""
    (block,) = operator.blocks
    numel, kept, spent = operator.numel[block], STORAGES[name], 0.0

    def multiply(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        nonlocal spent
        started = time.perf_counter()
        products = operator.sweep(vectors)
        spent += time.perf_counter() - started
        return products

    start = {block: {0: probe(0, block, 0, numel, "gaussian", operator.dtype)}}
    began = time.perf_counter()
    with peak_memory(operator.device) as peak:
        settings = LanczosSettings(steps, "full", kept)
        lanczos = BatchedLanczos(multiply, start, settings, operator.dtype, operator.device)
        while not lanczos.finished:
            lanczos.step()
        seconds = time.perf_counter() - began
    (orthogonality,) = lanczos.orthogonality().values()
    taken = int(lanczos.steps[0])
    off = lanczos.betas[0, : taken - 1]
    nodes, vectors = np.linalg.eigh(np.diag(lanczos.alphas[0, :taken]) + np.diag(off, 1) + np.diag(off, -1))
    here = bytes_per_stream(steps, numel, operator.dtype, kept)
    away = bytes_elsewhere(steps, numel, kept)
    return Found(nodes, vectors[0] ** 2, here, away, peak.bytes, orthogonality, seconds, spent)


def distance(first: Found, second: Found) -> float:
    """Return Wasserstein-1 of two quadratures over the range of the first."""
    nodes = np.sort(np.concatenate([first.nodes, second.nodes]))
    below = [np.array([found.weights[found.nodes <= x].sum() for x in nodes[:-1]]) for found in (first, second)]
    return float((abs(below[0] - below[1]) * np.diff(nodes)).sum() / np.ptp(first.nodes))


def main() -> None:
    """Run the baseline and the others in turn, and say how far apart they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storages", nargs="+", default=["int8"], choices=STORAGES)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--context", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = GPT(GPTConfig(options.vocabulary, options.context, options.layers, 8, options.width))
    data = [torch.randint(0, options.vocabulary, (2, options.context))]
    operator = HessianOperator(model, he.losses.causal_lm, data=data)
    (numel,) = operator.numel.values()
    print(", ".join(f"{key} {value}" for key, value in machine(torch.device("cpu")).items()))
    print(f"{numel:,} parameters, {options.steps} steps, one probe", flush=True)
    baseline = run(operator, BASELINE, options.steps)
    report(BASELINE, baseline, baseline)
    for name in options.storages:
        report(name, run(operator, name, options.steps), baseline)


def report(name: str, found: Found, baseline: Found) -> None:
    """Print one run."""
    apart = distance(baseline, found)
    rise = "unknown" if found.rise is None else f"{found.rise / 1e9:.2f} GB"
    meets = found.bytes_here <= MOST_BYTES and apart <= MOST_DISTANCE
    print(
        f"{name}: basis {found.bytes_here / 1e9:.2f} GB in memory and {found.bytes_elsewhere / 1e9:.2f} GB elsewhere, "
        f"memory rose by {rise}; {found.seconds:.0f} s, of them {found.seconds - found.products:.0f} s with Lanczos "
        f"vectors; |Q'Q - I| = {found.orthogonality:.1e}; Wasserstein-1 to {BASELINE} {apart:.2e} of the range"
        f"{', as was to be shown' if meets else ''}",
        flush=True,
    )


if __name__ == "__main__":
    main()
