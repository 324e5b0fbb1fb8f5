"""What a network's blocks are judged by: Lanczos streams of the job itself, and references made of something else.

Everything is kept in the cache: run folders of `hvp_engine.slq` (an interrupted one goes on), arrays of eigenvalues.
Blocks of at most EXACT parameters have all their eigenvalues, from products in float64 with every unit vector, and
streams in their eigenbasis, where a probe from the sphere is one from the sphere too. Larger blocks have streams of
real products in float32, and as their reference longer streams of other probes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import hvp_engine as he
from benchmarks.coverage.matrices import Matrix
from benchmarks.coverage.streams import Streams as Known
from benchmarks.coverage.streams import run

from .zoo import Network, trained

EXACT = 4_096
STEPS = 100
PROBES, EXACT_PROBES = 10, 40
# One step more tells the residual of the last one in every version of the package.
_LONG_STEPS, _LONG_PROBES, _LONG_SEED = 200, 10, 1_000
_CHUNK = 128
_SINGLES = 4  # single products beside every stream
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Streams:
    """Lanczos streams of one block.

    Attributes:
        numel: The block's number of parameters.
        alphas: (probes, m).
        betas: (probes, m): the last one of a stream is the norm of what was left.
        steps: (probes,) int64: fewer than m where the Krylov space was exhausted.
    """

    numel: int
    alphas: Array
    betas: Array
    steps: NDArray[np.int64]


def judged(network: Network, cache: Path) -> dict[str, Streams]:
    """Return the streams that estimates are made of, by block, in the network's order."""
    known = exact(network, cache)
    found = {}
    for name, values in known.items():
        streams = in_eigenbasis(network, cache, name, values)
        steps = np.minimum(streams.steps, STEPS)
        found[name] = Streams(values.size, streams.alphas[:, :STEPS], streams.betas[:, :STEPS], steps)
    found |= _run(network, cache, "judged", STEPS, PROBES, network.seed)
    return {name: found[name] for name in network.blocks}


def long(network: Network, cache: Path) -> dict[str, Streams]:
    """Return the long streams of the blocks that are too large for all their eigenvalues."""
    return _run(network, cache, "long", _LONG_STEPS, _LONG_PROBES, _LONG_SEED)


def exact(network: Network, cache: Path) -> dict[str, Array]:
    """Return all eigenvalues, ascending, of the blocks that are small enough."""

    def make() -> dict[str, NDArray[Any]]:
        model, data = trained(network, cache)
        operator = he.HessianOperator(model, network.loss, network.blocks, data=data, precision="fp64")
        values = {}
        for name, numel in operator.numel.items():
            if numel <= EXACT:
                units = torch.eye(numel, dtype=torch.float64).split(_CHUNK)
                matrix = torch.cat([operator.matmat({name: part})[name] for part in units])
                values[name] = torch.linalg.eigvalsh(0.5 * (matrix + matrix.T)).numpy()
        return values

    return _kept(cache / network.name / "exact.npz", make)


def in_eigenbasis(network: Network, cache: Path, name: str, values: Array) -> Known:
    """Return streams of a block in the basis of its eigenvectors, with single products beside them."""

    def make() -> dict[str, NDArray[Any]]:
        matrix = Matrix(name, values, np.ones(values.size, dtype=np.int64))
        # As in a job, other blocks have other probes: with the same, chance would move blocks of one size alike.
        seed = int.from_bytes(hashlib.blake2b(f"{network.seed}\0{name}".encode(), digest_size=8).digest(), "big")
        return vars(run(matrix, EXACT_PROBES, STEPS, _SINGLES, seed))

    return Known(**_kept(cache / network.name / f"own-probes-{name}.npz", make))


def _run(network: Network, cache: Path, folder: str, steps: int, probes: int, seed: int) -> dict[str, Streams]:
    known = exact(network, cache)
    blocks = {name: patterns for name, patterns in network.blocks.items() if name not in known}
    if not blocks:
        return {}

    def make() -> dict[str, NDArray[Any]]:
        model, data = trained(network, cache)
        spectra = he.slq(
            model,
            network.loss,
            blocks,
            data=data,
            steps=steps + 1,
            probes=probes,
            seed=seed,
            distribution="gaussian",
            memory=4 << 30,
            out=cache / network.name / folder,
        )
        arrays: dict[str, NDArray[Any]] = {}
        for name, found in spectra.items():
            arrays |= {f"{name}/alphas": found.alphas[:, :steps], f"{name}/betas": found.betas}
            arrays |= {f"{name}/steps": np.minimum(found.steps, steps), f"{name}/numel": np.array(found.numel)}
        return arrays

    kept = _kept(cache / network.name / f"{folder}.npz", make)
    fields = ("alphas", "betas", "steps")
    return {name: Streams(int(kept[f"{name}/numel"]), *(kept[f"{name}/{key}"] for key in fields)) for name in blocks}


def _kept(file: Path, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file of the cache, which is made where it is missing."""
    if not file.exists():
        arrays = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)
    with np.load(file) as found:
        return dict(found)
