"""Checks of the Lanczos kernels: reorthogonalisation, the record of a step, tridiagonal quadrature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import starmap

import numpy as np
import torch
from torch import Tensor

from hvp_engine.kernels.lanczos_step import record_step, record_step_ref
from hvp_engine.kernels.reorthogonalize import reorthogonalize, reorthogonalize_ref
from hvp_engine.kernels.streams import LanczosState, NewVector, Projection, Step
from hvp_engine.kernels.tridiagonal import tridiagonal_quadrature, tridiagonal_quadrature_ref

from .compare import distance, using, worst
from .report import Check

# Basis and vectors as the engine pairs them; a bf16 basis has an unrounded window beside it.
DTYPES = (
    ("fp32", torch.float32, torch.float32),
    ("bf16", torch.bfloat16, torch.float32),
    ("fp64", torch.float64, torch.float64),
)
_SHAPES = ((2, 1), (31, 7), (129, 64), (4097, 33), (5, 0))  # length and rows in use
_LARGE_SHAPES = (*_SHAPES, (65_543, 100), (1_000_003, 17))
Reorthogonalize = Callable[[list[Tensor], list[Tensor], list[int]], Projection]


def _streams(shapes: tuple[tuple[int, int], ...], basis: torch.dtype, vector: torch.dtype):
    """Orthonormal rows with two spare ones full of NaN, and random vectors, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    bases, vectors = [], []
    for n, count in shapes:
        rows = torch.full((count + 2, n), float("nan"), dtype=basis)
        rows[:count] = torch.linalg.qr(torch.randn(n, count, generator=generator, dtype=torch.float64))[0].T
        bases.append(rows)
        vectors.append(torch.randn(n, generator=generator).to(vector))
    return bases, vectors, [count for _, count in shapes]


def check_reorthogonalize(device: torch.device, backend: str, small: bool) -> Iterator[Check]:
    """Check vectors, coefficients and norms of ragged streams; the same bits twice."""
    for name, basis, vector in DTYPES:
        bases, vectors, counts = _streams(_SHAPES if small else _LARGE_SHAPES, basis, vector)
        exact = [v.to(torch.float64, copy=True) for v in vectors]
        wanted = reorthogonalize_ref([b.double() for b in bases], exact, counts)

        def on_device(
            function: Reorthogonalize, bases=bases, vectors=vectors, counts=counts
        ) -> tuple[list[Tensor], Projection]:
            # clone: on the CPU .to() would hand out the vectors themselves, which are updated in place
            copies = [v.clone().to(device) for v in vectors]
            return copies, function([b.to(device) for b in bases], copies, counts)

        plain_vectors, plain = on_device(reorthogonalize_ref)
        with using(backend):
            (found_vectors, found), (again, _) = on_device(reorthogonalize), on_device(reorthogonalize)
        parts = [*zip(found_vectors, plain_vectors, exact, strict=True)]
        parts += zip(found[:2], plain[:2], wanted[:2], strict=True)
        yield Check(f"{backend} reorthogonalize, {name} basis", *worst(parts, vector))
        differing = sum(not torch.equal(a, b) for a, b in zip(found_vectors, again, strict=True))
        yield Check(f"{backend} reorthogonalize, {name} basis, same bits twice", differing, 0)


def _state(streams: int, steps: int) -> LanczosState:
    alphas, betas = torch.rand((2, streams, steps), dtype=torch.float64)
    lost, norms = torch.rand((2, streams), dtype=torch.float64)
    live = torch.tensor([True] * (streams - 1) + [False])
    done = torch.where(live, 1, 0)
    return LanczosState(alphas, betas, done, live, lost, norms, torch.full((streams,), steps))


def check_record_step(device: torch.device, backend: str, small: bool) -> Iterator[Check]:
    """Return the state and the next vectors of streams that go on, break down or have ended before."""
    lengths = (1, 31, 4097, 129, 65_537)[: 4 if small else 5]
    for name, basis, dtype in DTYPES:
        torch.manual_seed(0)
        state = _state(len(lengths) + 1, 4)
        members = list(range(1, len(lengths) + 1))  # the last one is not live any more
        scalars = torch.rand((3, len(members)), dtype=torch.float64) + 0.5
        scalars[1, 1] = 1e-14  # the second one breaks down
        vectors = [torch.randn(n, dtype=torch.float64).to(dtype) for n in lengths]

        def on_device(
            function: Callable[..., None],
            device: torch.device,
            basis=basis,
            dtype=dtype,
            state=state,
            members=members,
            scalars=scalars,
            vectors=vectors,
        ) -> list[Tensor]:
            mine = LanczosState(*(t.clone().to(device) for t in state))
            found = scalars.to(device)
            rows = [v.clone().to(device, dtype) for v in vectors]
            stores = [torch.empty_like(row, dtype=basis) for row in rows]
            windows = [None if basis == dtype else torch.empty_like(row) for row in rows]
            new = list(starmap(NewVector, zip(range(len(rows)), rows, stores, windows, strict=True)))
            function(mine, Step(members, 1, *found, 1e-10), new)
            return [*mine, *stores, *(w for w in windows if w is not None)]

        exact = on_device(record_step_ref, torch.device("cpu"), basis=torch.float64, dtype=torch.float64)
        plain = on_device(record_step_ref, device)
        with using(backend):
            found = on_device(record_step, device)
        exact += exact[-len(vectors) :] if len(found) > len(exact) else []  # the windows are the same vectors
        parts = [(f.double(), p.double(), e.double()) for f, p, e in zip(found, plain, exact, strict=True)]
        kept = len(state)
        yield Check(f"{backend} record step, {name} basis, state", *worst(parts[:kept]))
        yield Check(f"{backend} record step, {name} basis, vectors", *worst(parts[kept:], basis))


def check_quadrature(device: torch.device, backend: str, small: bool) -> Iterator[Check]:
    """Check nodes and moments that nodes and weights give, of ragged matrices against dense solutions."""
    rng = np.random.default_rng(0)
    count, m = (40, 25) if small else (1000, 100)
    alphas, betas = rng.standard_normal((count, m)), np.abs(rng.standard_normal((count, m - 1)))
    steps = rng.integers(1, m + 1, count)
    betas[0] = 0.0
    alphas[1] *= 1e100
    betas[1] *= 1e100
    nodes, weights = tridiagonal_quadrature_ref(alphas, betas, steps)
    with using(backend):
        found_nodes, found_weights = tridiagonal_quadrature(alphas, betas, steps, device)
    scale = np.abs(nodes).max(axis=1, keepdims=True)
    found, wanted = torch.from_numpy(found_nodes / scale), torch.from_numpy(nodes / scale)
    yield Check(f"{backend} quadrature, nodes", distance(found, wanted), 1e-13)
    # Single weights of close nodes are not determined; the moments that they give are.
    powers = np.arange(4)[:, None, None]
    moments = [
        torch.from_numpy((w * (x / scale) ** powers).sum(axis=-1))
        for x, w in ((found_nodes, found_weights), (nodes, weights))
    ]
    yield Check(f"{backend} quadrature, moments", distance(*moments), 1e-12)
