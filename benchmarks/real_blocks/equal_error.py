"""How many products the readings of few streams take to the error of ten probes times a hundred steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .scores import SCORES, Gauss, Judge, Ours, Reader
from .streams import STEPS, Streams, judged, long
from .truth import coefficients, truths
from .zoo import Network

PAPER_PROBES = 10
PAPER_PRODUCTS = PAPER_PROBES * STEPS
_GROUPS = 8  # most groups of probes that a median is taken over
_PROBES = (1, 2, 3, 5, 7, 10)
_STEPS = (10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 85, 100)
_MOST = 500  # products: beyond, the ratio is below two


def groups(available: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Yield groups of probes: disjoint ones first, then ones of the same probes in other company."""
    random = np.random.default_rng(size)
    for _ in range(_GROUPS if size > 1 else 1):
        order = random.permutation(available)
        yield from order[: available // size * size].reshape(-1, size)


def median_errors(
    judge: Judge,
    name: str,
    streams: Streams,
    read: Reader,
    probes: int,
    steps: int,
    scores: Sequence[str] = SCORES,
) -> dict[str, float]:
    """Return the median error by score over groups of probes."""
    chosen = list(groups(len(streams.alphas), probes))[:_GROUPS]
    errors = [judge.errors(name, read(name, coefficients(streams, group, steps)), scores) for group in chosen]
    return {score: float(np.median([error[score] for error in errors])) for score in scores}


def doubt(judge: Judge, name: str, reference: Streams | None) -> dict[str, float]:
    """Estimate by score how far off a reference of several probes is by chance: the jackknife; 0 for eigenvalues."""
    if reference is None:
        return dict.fromkeys(SCORES, 0.0)
    probes, steps = reference.alphas.shape
    left = [np.delete(np.arange(probes), probe) for probe in range(probes)]
    errors = [judge.errors(name, Ours(name, coefficients(reference, group, steps))) for group in left]
    return {score: math.sqrt((probes - 1) * np.mean([e[score] ** 2 for e in errors])) for score in SCORES}


def _length(reference: Streams | None) -> str:
    return "exact" if reference is None else "{} x {}".format(*reference.alphas.shape)


def products_to_equal_error(network: Network, cache: Path) -> list[dict[str, object]]:
    """Return a row per block: the paper's errors, and by score the fewest products of ours, None beyond 500."""
    judge = Judge(truths(network, cache))
    references, rows = long(network, cache), []
    for name, streams in judged(network, cache).items():
        paper = median_errors(judge, name, streams, Gauss, PAPER_PROBES, STEPS)
        found: dict[str, int] = {}
        spent = sorted((p * m, p, m) for p in _PROBES for m in _STEPS if p * m <= _MOST)
        for products, probes, steps in spent:
            missing = [score for score in SCORES if score not in found]
            if not missing:
                break
            errors = median_errors(judge, name, streams, Ours, probes, steps, missing)
            found |= {score: products for score in missing if errors[score] <= paper[score]}
        rows.append(
            {
                "network": network.name,
                "block": name,
                "numel": streams.numel,
                "reference": _length(references.get(name)),
                "doubt": doubt(judge, name, references.get(name)),
                "paper": paper,
                "products": {score: found.get(score) for score in SCORES},
            }
        )
    return rows
