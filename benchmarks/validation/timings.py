"""Times of every kernel on a device beside its roofline, and of a sweep over the paper's blocks beside plain PyTorch.

The roofline of a launch is the largest of its bytes over the copy bandwidth that was just measured, and its arithmetic
over the datasheet's ceilings, where the device is in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import roofline
import torch
from baselines.best_practice import BestPracticeHessian
from jobs import gpt_job, mean_loss
from op_cases import CASES, PASSES, passes
from timing import alternate, peak_gib, seconds
from torch import Tensor

import hvp_engine as he
from hvp_engine import ops
from hvp_engine.kernels.attention import counts_of, counts_on
from hvp_engine.kernels.lanczos_step import record_step
from hvp_engine.kernels.records import AttentionSizes
from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.kernels.streams import LanczosState, NewVector, Step
from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature
from hvp_engine.planning.devices import GPUS

from .compare import using
from .report import Timing

ROUNDS = 7
_SMALL = roofline.Sizes(streams=2, rows=5, columns=4096, matrices=40, steps=20)
_BASES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_BASIS_SHARE = 0.25  # of the free memory


def ceilings(device: torch.device, small: bool) -> roofline.Device:
    """Measure the copy bandwidth; take the datasheet's arithmetic where the device is known, else none."""
    source = torch.ones((1 << 20) if small else (1 << 28), device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / alternate({"copy": lambda: target.copy_(source)}, ROUNDS, device=device)["copy"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    known = next((d for d in roofline.DEVICES if d.name.partition("-")[0] in name), None)
    none = float("inf")
    return roofline.Device(name, bandwidth, none, none, none) if known is None else replace(known, bandwidth=bandwidth)


def product_peak(device: roofline.Device, precision: str) -> float | None:
    """Return FLOP per second of matrix products from the datasheet, or None where it is not known."""
    known = next((gpu for gpu in GPUS.values() if gpu.name.startswith(device.name.lower().partition("-")[0])), None)
    return None if known is None else known.peak.get(precision)


def _sizes(device: torch.device, small: bool) -> roofline.Sizes:
    """Return the reference job with vectors as long as memory admits."""
    if small:
        return _SMALL
    free, _ = torch.cuda.mem_get_info(device)
    reference = roofline.REFERENCE
    columns = int(_BASIS_SHARE * free) // (4 * reference.streams * reference.rows)
    return replace(reference, columns=min(reference.columns, columns) // 4096 * 4096)


def _bound(work: list[roofline.Work], device: roofline.Device) -> float:
    return sum(roofline.bound(w, device)[0] for w in work)


def time_lanczos(device: torch.device, backend: str, top: roofline.Device, small: bool) -> Iterator[Timing]:
    """Time reorthogonalisation and the record of a step for all streams of the reference job."""
    sizes = _sizes(device, small)
    note = f"{sizes.streams} x {sizes.rows} x {sizes.columns:,}"
    for name, dtype in _BASES.items():
        shape = (sizes.streams, sizes.rows, sizes.columns)
        basis = torch.empty(shape, dtype=dtype, device=device).uniform_(-1, 1).mul_(sizes.columns**-0.5)
        vectors = torch.randn(sizes.streams, sizes.columns, device=device)
        counts = [sizes.rows] * sizes.streams
        with using(backend):
            taken = alternate(
                {"": lambda b=basis, v=vectors, c=counts: reorthogonalize(list(b), list(v), c)}, ROUNDS, device=device
            )[""]
        work = [*roofline.passes(name, sizes), *[roofline.sums(sizes)] * 3]
        yield Timing(f"{backend} reorthogonalize, {name} basis", taken, _bound(work, top), note)
        yield _time_record(device, backend, top, sizes, name, basis, vectors)
        del basis, vectors


def _time_record(
    device: torch.device,
    backend: str,
    top: roofline.Device,
    sizes: roofline.Sizes,
    name: str,
    basis: Tensor,
    vectors: Tensor,
) -> Timing:
    k = sizes.streams
    zeros, ones = torch.zeros((k, 8), dtype=torch.float64, device=device), torch.ones((k,), device=device)
    done = torch.zeros(k, dtype=torch.int64, device=device)
    state = LanczosState(zeros, zeros.clone(), done, ones > 0, zeros[:, 0].clone(), zeros[:, 0].clone(), done + 8)
    step = Step(list(range(k)), 1, ones.double(), ones.double(), zeros[:, 0].clone(), 1e-10)
    windows = [torch.empty_like(v) if name == "bf16" else None for v in vectors]
    new = [NewVector(s, vectors[s], basis[s, 0], windows[s]) for s in range(k)]
    with using(backend):
        taken = alternate({"": lambda: record_step(state, step, new)}, ROUNDS, device=device)[""]
    return Timing(f"{backend} record step, {name} basis", taken, _bound([roofline.record(name, sizes)], top))


def time_quadrature(device: torch.device, backend: str, top: roofline.Device, small: bool) -> Iterator[Timing]:
    """Time all tridiagonal matrices of a job, with the copies to the device and back.

    Bound by dependent roots and divisions, far above the roofline.
    """
    sizes = _SMALL if small else roofline.REFERENCE
    rng = np.random.default_rng(0)
    alphas, betas = rng.standard_normal((sizes.matrices, sizes.steps)), rng.random((sizes.matrices, sizes.steps - 1))
    steps = np.full(sizes.matrices, sizes.steps)
    with using(backend):
        taken = alternate({"": lambda: tridiagonal_quadrature(alphas, betas, steps, device)}, ROUNDS, device=device)[""]
    note = f"{sizes.matrices} x {sizes.steps}"
    yield Timing(f"{backend} quadrature", taken, _bound([roofline.quadrature(sizes)], top), note)


def time_operations(device: torch.device, backend: str, top: roofline.Device, small: bool) -> Iterator[Timing]:
    """Time each pass of the operations whose cost is their traffic."""
    size = (8, 16) if small else (8192, 3072)
    tokens, classes = (8, 31) if small else (2048, 50_304)
    logits, target = torch.randn(tokens, classes, device=device), torch.randint(0, classes, (tokens,), device=device)
    functions = {name: (ours, make(size, device), arrays) for name, (make, ours, _, arrays) in CASES.items()}
    functions["softmax"] = (ops.softmax, (logits,), (2, 3, 5))
    functions["cross_entropy"] = (lambda x: ops.cross_entropy(x, target), (logits,), (1, 2, 3))
    for name, (function, inputs, arrays) in functions.items():
        with using(backend):
            for label, run, moved in zip(PASSES, passes(function, inputs), arrays, strict=True):
                taken = alternate({"": run}, ROUNDS, device=device)[""]
                yield Timing(f"{backend} {name}, {label}", taken, moved * inputs[0].nbytes / top.bandwidth)


def time_attention(
    device: torch.device, backend: str, top: roofline.Device, dtypes: dict[str, torch.dtype], small: bool
) -> Iterator[Timing]:
    """Time each pass of causal attention, with a floor from the tile products that the kernels form."""
    batch, heads, length, width = (1, 2, 32, 16) if small else (4, 12, 1024, 64)
    for name, dtype in dtypes.items():
        inputs = tuple(torch.randn(batch, heads, length, width, device=device, dtype=dtype) for _ in range(3))
        peak = product_peak(top, name)
        with using(backend):
            products = _tile_products(AttentionSizes(dtype, batch, heads, heads, length, length, width, width), device)
            runs: tuple[Callable[[], object], ...] = passes(lambda *x: ops.attention(*x, is_causal=True), inputs)
            for label, run in zip(PASSES, runs, strict=True):
                taken = alternate({"": run}, ROUNDS, device=device)[""]
                flop = products[label] * 2.0 * batch * heads * width * length**2 / 2
                floor = None if peak is None else flop / peak
                yield Timing(f"{backend} attention, {name}, {label}", taken, floor, f"{length} tokens, causal")


def _tile_products(sizes: AttentionSizes, device: torch.device) -> dict[str, int]:
    """Count the products that each pass forms per tile of scores; where plain PyTorch serves, those that it needs."""
    counts = counts_on(device) or counts_of("native")
    found = (
        counts.forward(sizes),
        counts.backward((True,) * 3, sizes),
        counts.second((True,) * 3, (True,) * 4, sizes),
    )
    return {label: work.products for label, work in zip(PASSES, found, strict=True)}


def time_sweep(device: torch.device, backend: str, small: bool) -> Iterator[Timing]:
    """Time one product with each of the paper's blocks, and the same by an expert's plain PyTorch."""
    size = "tiny" if small else "medium"
    job = gpt_job(size, device)
    vectors = job.vectors()
    stacked = {name: vector[None] for name, vector in vectors.items()}
    expert = BestPracticeHessian(job.model, mean_loss, job.data, job.blocks)
    with using(backend):
        engine = he.HessianOperator(job.model, he.losses.causal_lm, job.patterns, data=job.data)
        seconds(lambda: engine.matmat(stacked), device)  # builds the graphs, compiles the kernels
        methods = {"engine": lambda: engine.matmat(stacked), "expert": lambda: expert.sweep(vectors)}
        taken = alternate(methods, 3, device=device)
        peaks = {name: peak_gib(method, device) for name, method in methods.items()}
    ratio = taken["expert"] / taken["engine"]
    for name, label in (("engine", f"{backend} sweep"), ("expert", "the same in plain PyTorch")):
        peak = "" if peaks[name] is None else f", peak {peaks[name]:.2f} GiB above what is kept"
        faster = f", {ratio:.2f} times faster than plain PyTorch" if name == "engine" else ""
        yield Timing(label, taken[name], None, f"{size}, {len(vectors)} blocks{faster}{peak}")
