"""Checks of whole calls on a small GPT: Hessian products, SLQ, and no wait for the device inside a Lanczos step."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from baselines.best_practice import BestPracticeHessian
from jobs import gpt_job, mean_loss
from torch import Tensor

import hvp_engine as he
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.registry import Storage
from hvp_engine.krylov.settings import LanczosSettings
from hvp_engine.problem.precision import Precision, product_dtype, product_mode, working_dtype
from hvp_engine.scheduling.compiling import COMPILE_AFTER

from .compare import using, worst
from .report import Check

CPU = torch.device("cpu")
STEPS, PROBES = 6, 2
WARM = COMPILE_AFTER + 1  # products until graphs are built and measured, kernels and products compiled
# Of the largest node: what six steps of Lanczos make of the rounding of fp32 products.
_QUADRATURE_ROUNDING = 1e-4


def _expert(device: torch.device, precision: Precision) -> dict[str, Tensor]:
    """Form products by plain PyTorch: one gradient graph and one second backward per block."""
    dtype = working_dtype(precision)
    job = gpt_job("tiny", device, dtype)
    context = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

    def loss(model, batch):
        with context:
            return mean_loss(model, batch)

    matrix = BestPracticeHessian(job.model, loss, job.data, job.blocks)
    with product_mode(precision):
        return matrix.sweep({name: vector.to(dtype) for name, vector in job.vectors().items()})


def check_hvp(device: torch.device, backend: str, precisions: tuple[Precision, ...]) -> Iterator[Check]:
    """`hvp` with every block in each precision; the row is the block nearest to its limit."""
    exact = _expert(CPU, "fp64")
    for precision in precisions:
        job = gpt_job("tiny", device)
        plain = _expert(device, precision)
        vectors = {name: vector[None] for name, vector in job.vectors().items()}
        with using(backend):
            found = he.hvp(job.model, he.losses.causal_lm, vectors, job.patterns, data=job.data, precision=precision)
        # Factors in TF32 have as many digits as float16.
        working = torch.float16 if precision == "tf32" else product_dtype(precision)
        parts = [(found[name][0], plain[name], exact[name]) for name in exact]
        yield Check(f"{backend} hvp, {precision}", *worst(parts, working), note=f"{len(parts)} blocks")


def _moments(device: torch.device, backend: str, **options: str) -> dict[str, Tensor]:
    """Per block the first two moments and the largest node, of each probe: what few steps determine well."""
    job = gpt_job("tiny", device)
    with using(backend):
        spectra = he.slq(
            job.model,
            he.losses.causal_lm,
            job.patterns,
            data=job.data,
            steps=STEPS,
            probes=PROBES,
            check=False,
            progress=False,
            **options,
        )
    found = {}
    for name, spectrum in spectra.items():
        nodes, weights = torch.tensor(spectrum.nodes), torch.tensor(spectrum.weights)
        # Roots keep the dimension of a node, so that one scale serves all.
        second = (weights * nodes**2).sum(1).sqrt()
        found[name] = torch.stack([(weights * nodes).sum(1), second, nodes.abs().amax(1)])
    return found


def check_slq(device: torch.device, backend: str) -> Iterator[Check]:
    """Return a few steps of `slq` on every block with an fp32 and a bf16 basis."""
    exact = _moments(CPU, "torch", precision="fp64")
    for basis in ("fp32", "bf16"):
        found, plain = (_moments(device, name, basis=basis) for name in (backend, "torch"))
        error, limit = worst((found[name], plain[name], exact[name]) for name in exact)
        yield Check(f"{backend} slq, {basis} basis", error, limit + _QUADRATURE_ROUNDING, note=f"{len(exact)} blocks")


def check_no_wait(device: torch.device, backend: str) -> Iterator[Check]:
    """Check whether the host waits for the device inside a Lanczos step on kept graphs; reported, not fatal."""
    name = f"{backend} Lanczos step waits for the device"
    if device.type != "cuda":
        yield Check(name, 0, 0, note=f"there is nothing to wait for on {device}", fatal=False)
        return
    with using(backend):
        step = _lanczos(device)
        for _ in range(WARM):
            step()
        with waits_are_errors(device) as waited:
            step()
    yield Check(name, float(bool(waited)), 0, note="; ".join(waited), fatal=False)


@contextmanager
def waits_are_errors(device: torch.device) -> Iterator[list[str]]:
    """Let PyTorch raise where the host would wait for the device; what stopped the body is in the list afterwards."""
    waited: list[str] = []
    if device.type != "cuda":
        yield waited
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield waited
    except Exception as error:  # the engine puts PyTorch's errors into words of its own
        frames = traceback.extract_tb((error.__cause__ or error).__traceback__)[-6:]
        lines = " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
        waited.append(f"{str(error).strip().partition(chr(10))[0]} ({lines})")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _lanczos(device: torch.device) -> Callable[[], int]:
    """One step of all streams, without a synchronisation of the host."""
    job = gpt_job("tiny", device)
    operator = he.HessianOperator(job.model, he.losses.causal_lm, job.patterns, data=job.data)
    starts = {
        block: {k: probe(0, block, k, numel, "rademacher", operator.dtype) for k in range(PROBES)}
        for block, numel in operator.numel.items()
    }
    settings = LanczosSettings(50, "full", Storage(torch.float32))
    return BatchedLanczos(operator.sweep, starts, settings, operator.dtype, operator.device, sync_every=50).step
