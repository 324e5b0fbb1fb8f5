"""Samplers run on matrices with known eigenvalues."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import numpy as np
import torch
from problems import symmetric
from torch import Tensor

from hvp_engine.krylov.sampling import Sampled, Sampler

SamplerT = TypeVar("SamplerT", bound=Sampler)
N = 80
_DRAWN = np.random.default_rng(5).standard_normal(N)

# Eigenvalues by name; of low rank without being decayed is the hardest case for what leaves one vector out.
SPECTRA = {
    "flat": np.linspace(0.9, 1.1, N),
    "slow decay": 1.0 / np.arange(1, N + 1),
    "fast decay": 1.0 / np.arange(1, N + 1) ** 2,
    "exponential decay": 0.85 ** np.arange(N),
    "indefinite": np.r_[1.0 / np.arange(1, N // 2 + 1), -0.8 / np.arange(1, N // 2 + 1)],
    "bulk around zero": _DRAWN,
    "outliers": np.r_[np.full(3, 50.0), _DRAWN[3:]],
    "low rank": np.r_[np.ones(30), np.zeros(N - 30)],
}


@cache
def matrix(name: str) -> Tensor:
    return symmetric(torch.from_numpy(SPECTRA[name]))


def sampled(a: Tensor, kind: type[SamplerT], most: int, seed: int = 0, **of: object) -> SamplerT:
    """Run a sampler on a matrix to its end, in the matrix's dtype."""
    facts = {"diagonal": False, "norm": False, "noise": 0.0, **of}
    sampler = kind(Sampled("b", len(a), most, seed, dtype=a.dtype, device=torch.device("cpu"), **facts))  # type: ignore[arg-type]
    while sampler.left:
        vectors = sampler.vectors()
        sampler.take(vectors, vectors @ a)
    sampler.look()
    return sampler
