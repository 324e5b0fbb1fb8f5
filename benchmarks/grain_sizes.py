"""How long a grain of each native kernel (csrc/cpu/grains.h) takes, and what more threads gain beyond it.

    python benchmarks/grain_sizes.py --rounds 15

Run it on a quiet machine with AVX-512. A grain should take about 25 microseconds on one thread: ``proposed`` is one
that would. Work of two grains is the least that is shared; where more threads lose there (below 1), it is too small.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import machine
from timing import alternate
from torch import Tensor

from hvp_engine.kernels import loader
from hvp_engine.kernels.activations import run_elementwise
from hvp_engine.kernels.attention import attention_backward, attention_forward, attention_second
from hvp_engine.kernels.cross_entropy import cross_entropy_forward, cross_entropy_hvp
from hvp_engine.kernels.embedding import sum_rows
from hvp_engine.kernels.normalize import normalize_double_backward, normalize_forward
from hvp_engine.kernels.packed_symmetric import packed_matvec, packed_size, pair_products
from hvp_engine.kernels.records import AttentionInputs, CrossEntropyRows, NormalizeShape
from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.kernels.softmax import softmax_double_backward
from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature

GRAINS = Path(__file__).resolve().parents[1] / "csrc" / "cpu" / "grains.h"
TARGET_US = 25.0
SHARED = (2, 4, 16)  # grains of work at which threads are compared
REPEATS = 20  # calls that are timed at once


@dataclass
class Job:
    """What does some work, how much it is in the unit of its grain, and tensors that it writes but does not return."""

    run: Callable[[], Any]
    work: float
    written: Sequence[Tensor] = ()


Case = Callable[[int], Job]  # of about so much work


def constants() -> dict[str, float]:
    """Read the grains that the kernels were written with."""
    found = re.findall(r"constexpr double (k\w+) = ([^;]+);", GRAINS.read_text())
    assert found
    return {name: float(eval(value, {})) for name, value in found}


def activation(work: int) -> Job:
    """Second backward of GELU."""
    x, g, u, d_g, d_x = torch.randn(5, work)
    return Job(partial(run_elementwise, "activation_double_backward", [x, g, u], [d_g, d_x], kind=0), work, [d_g, d_x])


def normalization(work: int) -> Job:
    """Second backward of LayerNorm without the weight's gradient, rows of 256."""
    size = 256
    rows = max(work // size, 1)
    x, g, u, y, d_x = torch.randn(5, rows, size)
    w, b = torch.ones(1, size), torch.zeros(1, size)
    statistics = torch.empty(1, rows, 2)
    shape = NormalizeShape(True, 1, rows, size)
    normalize_forward(shape, 1e-5, (x, 0), (w, 0), (b, 0), y, statistics)
    inputs = [(x, 0), (w, 0), (statistics, 0), (g, 0), (u, 0), (None, 0), (None, 0)]
    return Job(partial(normalize_double_backward, shape, inputs, y, d_x, None), rows * size, [y, d_x])


def softmax(work: int) -> Job:
    """Second backward, rows of 256."""
    rows = max(work // 256, 1)
    p, g, u, wrt_x, wrt_g = torch.rand(5, rows, 256)
    return Job(partial(softmax_double_backward, p, g, u, wrt_x, wrt_g), rows * 256, [wrt_x, wrt_g])


def cross_entropy(work: int) -> Job:
    """Product with the Hessian of the logits, 256 classes."""
    rows = max(work // 256, 1)
    logits, tangent, product = torch.randn(3, rows, 256)
    loss, scale, statistics = torch.empty(rows), torch.ones(rows), torch.empty(rows, 2)
    described = CrossEntropyRows(logits, torch.zeros(rows, dtype=torch.int64), None, rows, -100, 0.0)
    cross_entropy_forward(described, statistics, loss)
    return Job(partial(cross_entropy_hvp, described, statistics, scale, tangent, product, None), rows * 256, [product])


def embedding(work: int) -> Job:
    """Rows of 64 summed for as many tokens as the table has rows; the sort is PyTorch's, of what is sorted already."""
    rows = max(work // 128, 64)
    grad, tokens = torch.randn(rows, 64), torch.arange(rows)
    return Job(partial(sum_rows, grad, tokens, rows), 128 * rows)


def pairs(work: int) -> Job:
    """Products of pairs of 64 numbers."""
    last = packed_size(64)
    rows = max(work // last, 2)
    weight, out = torch.randn(rows, 64), torch.empty(rows, last)
    return Job(partial(pair_products, weight, torch.zeros(64), 0, last, out), rows * last, [out])


def matvec(work: int) -> Job:
    """Packed matrices of 64 rows times four vectors each."""
    tokens = max(work // (4 * packed_size(64)), 2)
    packed, vectors = torch.randn(tokens, packed_size(64)), torch.randn(4, tokens, 64)
    return Job(partial(packed_matvec, packed, vectors), 4 * packed.numel())


def tridiagonal(work: int) -> Job:
    """Matrices of 25 rows."""
    count = 16 * max(round(work / 25**2), 1)
    draw = np.random.default_rng(0)
    alphas, betas = draw.normal(size=(count, 25)), draw.uniform(0.5, 1.0, size=(count, 24))
    return Job(partial(tridiagonal_quadrature, alphas, betas, np.full(count, 25)), count / 16 * 25**2)


def _attention(work: int) -> tuple[AttentionInputs, Tensor, float]:
    heads = max(round(work / (32 * 32 * 64)), 1)
    query, key, value = torch.randn(3, 1, heads, 32, 32)
    inputs = AttentionInputs(query, key, value, None, torch.empty(1, heads, 32, 2), 0.2, False)
    return inputs, attention_forward(inputs), heads * 32 * 32 * 64


def forward(work: int) -> Job:
    """Attention of 32 tokens, heads of 32, forward."""
    inputs, _, done = _attention(work)
    return Job(partial(attention_forward, inputs), done)


def backward(work: int) -> Job:
    """Its backward pass."""
    inputs, out, done = _attention(work)
    return Job(partial(attention_backward, inputs, torch.randn_like(out), (True, True, True)), done)


def second(work: int) -> Job:
    """Its second backward pass, whole."""
    inputs, out, done = _attention(work)
    tangents = [inputs.query, inputs.key, inputs.value]
    return Job(partial(attention_second, inputs, torch.randn_like(out), tangents, (True, True, True, True)), done)


def reorthogonalization(work: int) -> Job:
    """Streams of 2,048 numbers against 8 rows: three reads of these, two of the vector."""
    size, rows = 2048, 8
    streams = max(work // (size * (3 * rows + 2)), 1)
    bases = [torch.linalg.qr(torch.randn(size, rows))[0].T.contiguous() for _ in range(streams)]
    vectors = list(torch.randn(streams, size))
    return Job(partial(reorthogonalize, bases, vectors, [rows] * streams), streams * size * (3 * rows + 2), vectors)


def fingerprint(work: int) -> Job:
    """Bytes, read once."""
    data = torch.zeros(work // 4)
    return Job(lambda: loader.native.fingerprint(data.data_ptr(), data.nbytes), data.nbytes)


def read(work: int) -> Job:
    """Floats, read once."""
    data = torch.zeros(work)
    return Job(lambda: loader.native.read_sum(data.data_ptr(), data.numel()), work)


CASES: dict[str, Case] = {
    "kActivation": activation,
    "kNormalize": normalization,
    "kSoftmax": softmax,
    "kCrossEntropy": cross_entropy,
    "kEmbedding": embedding,
    "kPairs": pairs,
    "kMatvec": matvec,
    "kTridiagonal": tridiagonal,
    "kAttentionForward": forward,
    "kAttentionBackward": backward,
    "kAttentionSecond": second,
    "kReorthogonalize": reorthogonalization,
    "kFingerprint": fingerprint,
    "kRead": read,
}


def on_threads(job: Job, threads: int) -> None:
    """Repeat a job on as many threads."""
    torch.set_num_threads(threads)
    for _ in range(REPEATS):
        job.run()


def row(name: str, grain: float, threads: int, rounds: int) -> str:
    """Measure a kernel and return its row of the table."""
    job, least = CASES[name](int(grain)), CASES[name](1)
    alone = alternate({"grain": partial(on_threads, job, 1), "least": partial(on_threads, least, 1)}, rounds)
    spent = 1e6 * alone["grain"] / REPEATS * grain / job.work
    cells = [name, f"{grain:,.0f}", f"{spent:.1f}", f"{1e6 * alone['least'] / REPEATS:.1f}"]
    cells.append(f"{grain * TARGET_US / spent:,.0f}")
    for grains in SHARED:
        job = CASES[name](int(grains * grain * 1.05))
        taken = alternate({str(n): partial(on_threads, job, n) for n in (1, threads)}, rounds)
        cells.append(f"{taken['1'] / taken[str(threads)]:.2f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure every kernel and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=CASES)
    options = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine(torch.device("cpu")).items()))
    gains = [f"{options.threads} threads at {grains} grains" for grains in SHARED]
    head = ["constant", "a grain", "us on one thread", "us of the least work", "proposed", *gains]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    known = constants()
    for name in options.only:
        print(row(name, known[name], options.threads, options.rounds), flush=True)


if __name__ == "__main__":
    main()
