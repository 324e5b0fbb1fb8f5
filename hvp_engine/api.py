"""The public calls: ``slq`` and ``hvp``."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hvp_engine.blocks import BlockSpec, Part
from hvp_engine.diagnosis.second_derivative import verify
from hvp_engine.errors import OutOfMemoryError
from hvp_engine.jobs.checkpoint import Checkpoint, refuse_foreign
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.krylov.lanczos import BatchedLanczos, LanczosSettings, Stream
from hvp_engine.krylov.probes import Distribution, check_distribution, probe
from hvp_engine.krylov.settings import BASIS_DTYPES, check_arguments, whole
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.ops.head.dropping import check_tolerance
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.scheduling.waves import group_streams, stream_bytes
from hvp_engine.system import memory as device_memory
from hvp_engine.system.progress import ProgressReporter
from hvp_engine.system.versions import versions


def hvp(
    model: nn.Module,
    loss: Loss,
    vectors: Mapping[str, Tensor],
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    precision: Precision = "fp32",
) -> dict[str, Tensor]:
    """Hessian-vector products with diagonal blocks of the Hessian.

    Args:
        model: The network; never changed.
        loss: ``loss(model, batch)``, or ``loss(model)`` when ``data`` is None. It returns the mean over its batch as a
            scalar, or ``(total, weight)``.
        vectors: (k, numel) per block name; blocks may be left out.
        blocks: ``None``/``"full"``, ``"parameter"``, ``"module"``, parameter names, a mapping of names to globs, or
            :class:`hvp_engine.Block` objects.
        data: Re-iterable of batches.
        precision: ``"fp64"``, ``"fp32"``, ``"tf32"`` or ``"bf16"``.

    Returns:
        H_bb v per block, (k, numel), float64 for ``"fp64"`` and float32 otherwise.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    return HessianOperator(model, loss, blocks, data=data, precision=precision).matmat(vectors)


@torch.inference_mode(False)
def slq(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    steps: int = 100,
    probes: int = 10,
    seed: int = 0,
    distribution: Distribution = "rademacher",
    precision: Precision = "fp32",
    reorthogonalize: Literal["full", "none"] = "full",
    basis: Literal["fp32", "bf16"] = "fp32",
    microbatch: int | None = None,
    memory: int | None = None,
    head_curvature: bool = True,
    head_curvature_tolerance: float = 0.0,
    check: bool = True,
    progress: bool | None = None,
    out: str | PathLike[str] | None = None,
) -> Spectra:
    """Stochastic Lanczos quadrature of the Hessian's diagonal blocks.

    For every block b, ``probes`` random unit vectors start ``steps`` Lanczos steps each on H_bb; the eigenvalues of the
    tridiagonal matrices and the squared first components of their eigenvectors are a Gauss quadrature of the block's
    spectral density (Golub & Meurant 2010; Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao 2019). All streams
    (blocks x probes) advance together and share one gradient graph per micro-batch.

    Args:
        model: The network; never changed.
        loss: ``loss(model, batch)``, or ``loss(model)`` when ``data`` is None. It returns the mean over its batch as a
            scalar, or ``(total, weight)``; :mod:`hvp_engine.losses` has ready ones.
        blocks: ``None``/``"full"``, ``"parameter"``, ``"module"``, parameter names, a mapping of names to globs, or
            :class:`hvp_engine.Block` objects.
        data: Re-iterable of batches (tensors, tuples or mappings of tensors), the same in every pass.
        steps: Lanczos steps m; streams of blocks smaller than m end earlier, exactly.
        probes: Random vectors per block; the error bars come from their spread.
        seed: Decides the probes; the same seed gives the same bits on one machine.
        distribution: ``"rademacher"`` or ``"gaussian"`` (normalised).
        precision: Arithmetic of the products: ``"fp64"``, ``"fp32"``, ``"tf32"``, ``"bf16"``.
        reorthogonalize: ``"full"`` keeps all Lanczos vectors and admits no ghost eigenvalues; ``"none"`` keeps two.
        basis: Dtype of the kept vectors, ``"fp32"`` or ``"bf16"`` (half the memory); ``precision="fp64"`` keeps fp64.
        microbatch: Samples differentiated at once; None takes whole batches while they fit.
        memory: Budget in bytes for graphs and vectors; None takes 80 % of what is free.
        head_curvature: Form the curvature of a linear head once where that is cheaper than passing through the head in
            every product (exact to rounding, see :mod:`hvp_engine.operators.head.store`); False always passes through.
        head_curvature_tolerance: Admit more than rounding, so that it is formed faster: vocabulary entries of little
            probability are dropped while no token's matrix loses more than this share of the largest one's trace. The
            manifest has the share reached and the entries kept. 0 drops none.
        check: Test the second derivative for symmetry and against finite differences first.
        progress: True shows progress, False hides it, None shows it on a terminal.
        out: Run folder. Results and checkpoints go there; the same call again resumes, or returns what is complete.

    Returns:
        One spectrum per block.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    check_arguments(steps, probes, reorthogonalize, basis)
    steps, probes, seed = int(steps), int(probes), whole("seed", seed)
    check_tolerance(head_curvature_tolerance)
    check_distribution(distribution)
    started = time.monotonic()
    operator = HessianOperator(
        model, loss, blocks, data=data, precision=precision, microbatch=microbatch, memory=memory
    )
    store = torch.float64 if precision == "fp64" else BASIS_DTYPES[basis]
    settings = LanczosSettings(steps, reorthogonalize, store)
    config: dict[str, Any] = {
        "steps": steps,
        "probes": probes,
        "seed": seed,
        "distribution": distribution,
        "precision": precision,
        "reorthogonalize": reorthogonalize,
        "basis": str(store).removeprefix("torch."),
        "head_curvature": head_curvature,
        "head_curvature_tolerance": head_curvature_tolerance,
        "blocks": _described(operator),
    }
    identity = {**config, **_digests(operator)}
    run = None if out is None else Path(out)
    if run is not None and (run / "manifest.json").exists():
        finished = Spectra.load(run)
        refuse_foreign(finished.manifest.get("identity", {}), identity, run)
        return finished
    checkpoint = None if run is None else Checkpoint(run, identity)
    verification = _verified(operator) if check else None
    if head_curvature:
        products = {name: probes * min(steps, numel) for name, numel in operator.numel.items()}
        operator.prepare(products, progress, head_curvature_tolerance)
    waves = _waves(operator, settings, probes, memory)
    if checkpoint is not None:
        waves = checkpoint.waves(waves)
    with retained_heap():
        results = _run(operator, waves, settings, seed, distribution, checkpoint, progress)
    manifest = {
        "identity": identity,
        "config": config,
        "verification": verification,
        **_facts(operator, results),
        "seconds": round(time.monotonic() - started, 3),
    }
    spectra = Spectra(_assemble(operator, results, probes, settings), manifest)
    if run is not None:
        spectra.save(run)
    if checkpoint is not None:
        checkpoint.remove()
    return spectra


def _run(
    operator: HessianOperator,
    waves: list[list[Stream]],
    settings: LanczosSettings,
    seed: int,
    distribution: Distribution,
    checkpoint: Checkpoint | None,
    progress: bool | None,
) -> list[BatchedLanczos]:
    """Run every wave to its end, with checkpoints and progress; returns their states without the vectors."""
    numel = operator.numel
    total = sum(min(settings.steps, numel[block]) for wave in waves for block, _ in wave)
    done: list[BatchedLanczos] = []
    with ProgressReporter("slq", total, progress) as reporter:
        for number, wave in enumerate(waves):
            starts: dict[str, dict[int, Tensor]] = {}
            for block, k in wave:
                vector = probe(seed, block, k, numel[block], distribution, operator.dtype)
                starts.setdefault(block, {})[k] = vector
            lanczos = BatchedLanczos(operator.sweep, starts, settings, operator.dtype, operator.device)
            del starts, vector  # copied into the basis
            if checkpoint is not None:
                checkpoint.restore(number, lanczos)
            reporter.resume(int(lanczos.steps.sum()))
            try:
                while not lanczos.finished:
                    advanced = lanczos.step()
                    reporter.advance(advanced, f"step {lanczos.position} of {settings.steps}")
                    if checkpoint is not None and lanczos.consistent and checkpoint.due():
                        checkpoint.save(number, lanczos)
            except BaseException:
                if checkpoint is not None and lanczos.consistent:
                    checkpoint.save(number, lanczos)
                raise
            if checkpoint is not None:
                checkpoint.finish(number, lanczos)
            lanczos.release()
            done.append(lanczos)
    return done


def _waves(operator: HessianOperator, settings: LanczosSettings, probes: int, memory: int | None) -> list[list[Stream]]:
    """Group the streams so that each group's Lanczos vectors fit beside one micro-batch's graph."""
    budget = device_memory.budget(operator.device) + operator.held_bytes if memory is None else memory
    room = budget - operator.scheduler.working_bytes - operator.held_bytes
    needs = {
        block: stream_bytes(settings.steps, numel, operator.dtype, settings.store_dtype)
        for block, numel in operator.numel.items()
    }

    def refuse(block: str, need: int) -> OutOfMemoryError:
        numel = operator.numel[block]
        return OutOfMemoryError(
            f"One stream of block {block!r} ({numel:,} parameters, {min(settings.steps, numel)} steps) needs "
            f"{need / 2**30:.3g} GiB; {max(room, 0) / 2**30:.3g} GiB are left. Use basis='bf16', "
            "reorthogonalize='none', fewer steps, smaller blocks, or raise memory=."
        )

    waves, most = group_streams(needs, probes, room, refuse)
    operator.scheduler.reserve(most + operator.held_bytes)
    return waves


def _assemble(
    operator: HessianOperator, results: list[BatchedLanczos], probes: int, settings: LanczosSettings
) -> list[Spectrum]:
    """Collect each block's streams from the waves and turn them into spectra."""
    spectra: list[Spectrum] = []
    for block, numel in operator.numel.items():
        alphas = np.zeros((probes, settings.steps))
        betas = np.zeros((probes, settings.steps - 1))
        steps = np.zeros(probes, dtype=np.int64)
        for lanczos in results:
            for s, (name, k) in enumerate(lanczos.streams):
                if name == block:
                    alphas[k], betas[k] = lanczos.alphas[s], lanczos.betas[s, : settings.steps - 1]
                    steps[k] = lanczos.steps[s]
        spectra.append(Spectrum.from_tridiagonal(block, numel, alphas, betas, steps, operator.device))
    return spectra


def _verified(operator: HessianOperator) -> dict[str, Any]:
    """Verify on the first batch; a test that does not apply (nan) is recorded as None, which JSON has."""
    _, batch = next(iter(operator.objective.batches()))
    measured = asdict(verify(operator.objective, operator.partition, batch))
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in measured.items()}


def _described(operator: HessianOperator) -> dict[str, list[str]]:
    """The blocks in words that two runs can compare."""
    return {name: [_describe(part) for part in block.parts] for name, block in operator.partition.blocks.items()}


def _describe(part: Part) -> str:
    """A part in words that two runs can compare."""
    if part.index is None:
        return part.parameter
    if isinstance(part.index, Tensor):
        digest = hashlib.blake2b(part.index.cpu().numpy().tobytes(), digest_size=8).hexdigest()
        return f"{part.parameter}[{part.index.numel()} indices, {digest}]"
    return f"{part.parameter}[{part.index}]"


def _digests(operator: HessianOperator) -> dict[str, Any]:
    """Hashes of the parameters and the data, and the loss of the first batch (it stands for the loss function)."""
    objective = operator.objective
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in objective.parameters.items():
        digest.update(name.encode())
        flat = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    first: float | None = None
    for number, batch in objective.batches():
        if number == 0:
            first = objective.spot_value(batch)
    return {"parameters": digest.hexdigest(), "data": objective.data_digest, "first_loss": first}


def _facts(operator: HessianOperator, results: list[BatchedLanczos]) -> dict[str, Any]:
    """What the manifest says about how a finished job ran, whatever was asked for."""
    return {
        "versions": versions(),
        "device": str(operator.device),
        "threads": torch.get_num_threads(),
        "notes": list(operator.notes),
        "fused_operations": sorted(operator.objective.fused.replaced),
        "plan": {**operator.scheduler.plan.record(), "waves": len(results)},
        "lost_orthogonality": max(float(lanczos.lost.max()) for lanczos in results),
    }
