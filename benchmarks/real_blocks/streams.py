"""What a network's blocks are judged by: Lanczos streams of the job itself, and references made of something else.

Everything is kept in the cache: run folders of `hvp_engine.slq` (an interrupted one goes on), arrays of eigenvalues.
Blocks of at most EXACT parameters have all their eigenvalues, from products in float64 with every unit vector. Others
have long streams of other probes; both ways of estimating are then compared with the same estimate, whose own error
they share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import hvp_engine as he

from .zoo import Network, trained

EXACT = 4_096
STEPS = 100
# One step more tells the residual of the hundredth in every version of the package.
_RUN_STEPS = STEPS + 1
_LONG_STEPS, _LONG_PROBES, _LONG_SEED = 200, 6, 1_000
_CHUNK = 256
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Streams:
    """Lanczos streams of one block: alphas (probes, m), betas (probes, m), the last one the residual's norm."""

    numel: int
    alphas: Array
    betas: Array


def judged(network: Network, cache: Path) -> dict[str, Streams]:
    """Return the streams that estimates are made of, STEPS steps each, by block."""
    return _streams(network, cache, "judged", network.blocks, _RUN_STEPS, network.probes, network.seed)


def long(network: Network, cache: Path) -> dict[str, Streams]:
    """Return the long streams of the blocks that are too large for all their eigenvalues."""
    small = {name for name, streams in judged(network, cache).items() if streams.numel <= EXACT}
    blocks = {name: patterns for name, patterns in network.blocks.items() if name not in small}
    if not blocks:
        return {}
    return _streams(network, cache, "long", blocks, _LONG_STEPS + 1, _LONG_PROBES, _LONG_SEED)


def exact(network: Network, cache: Path) -> dict[str, Array]:
    """Return all eigenvalues, ascending, of the blocks that are small enough."""
    file = cache / network.name / "exact.npz"
    if file.exists():
        with np.load(file) as found:
            return dict(found)
    model, data = trained(network, cache)
    operator = he.HessianOperator(model, network.loss, network.blocks, data=data, precision="fp64")
    values = {}
    for name, numel in operator.numel.items():
        if numel <= EXACT:
            units = torch.eye(numel, dtype=torch.float64).split(_CHUNK)
            matrix = torch.cat([operator.matmat({name: part})[name] for part in units])
            values[name] = torch.linalg.eigvalsh(0.5 * (matrix + matrix.T)).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **values)
    return values


def _streams(
    network: Network, cache: Path, folder: str, blocks: dict[str, list[str]], steps: int, probes: int, seed: int
) -> dict[str, Streams]:
    model, data = trained(network, cache)
    spectra = he.slq(
        model,
        network.loss,
        blocks,
        data=data,
        steps=steps,
        probes=probes,
        seed=seed,
        distribution="gaussian",
        memory=4 << 30,
        out=cache / network.name / folder,
    )
    return {
        name: Streams(found.numel, found.alphas[:, : steps - 1], found.betas) for name, found in spectra.items()
    }
