"""Which classes the curvature of a softmax head can do without, and what their absence changes.

M_n is the covariance of W's rows w_v under the probabilities p_nv. Classes D that weigh little for every token of a
chunk are merged into one class at their mean e_n. By the law of total covariance the merged matrix differs from M_n by
E_n = sum_{v in D} p_nv (w_v - e_n)(w_v - e_n)': it stays positive semidefinite, never exceeds M_n, and no eigenvalue
moves by more than the trace of E_n, which one product of the probabilities with squared lengths gives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError

__all__ = ["Dropped", "Dropping", "Moments", "check_tolerance"]

_CUTS = 64  # kept sets that are tried, each _STEP times the one before
_STEP = 0.9
_ROUNDING = 1e-3  # bounds are widened by this share of what they sum
_FEWEST_TOKENS = 64  # that share a set of kept classes
_PAIR_TOKENS = 64  # tokens whose share of the product takes as long as making the pair products
_PANEL = 4096  # classes per temporary


@dataclass(frozen=True)
class Dropped:
    """What merging classes can have changed.

    Attributes:
        bound: Bounds (N) of the differences' traces, and so of their spectral norms; rounding comes on top.
        relative: Largest bound relative to the largest trace in its chunk of tokens.
        kept: Share of the classes that were kept, averaged over the tokens.
    """

    bound: Tensor
    relative: float
    kept: float


@dataclass(frozen=True)
class Moments:
    """What the matrices of n tokens are formed from: sum_v p_nv (w_v - c)(w_v - c)' + x_n x_n' - m_n m_n'.

    Attributes:
        probabilities: p (n, k).
        weight: Rows w (k, d) of the k classes in the sum.
        mean: m (n, d), of all classes.
        center: c (d).
        merged: x (n, d) for all other classes; None where there are none.
    """

    probabilities: Tensor
    weight: Tensor
    mean: Tensor
    center: Tensor
    merged: Tensor | None = None


def check_tolerance(tolerance: float) -> None:
    """Raise ConfigurationError unless the tolerance is a number in [0, 1)."""
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise ConfigurationError(
            f"A head curvature tolerance of {tolerance!r} is not a number of at least 0 and below 1. It is the share "
            "of the largest matrix's trace that any token's matrix may lose: pass 0 to keep all classes, or 1e-3, say."
        )


class Dropping:
    """The merging of classes, a chunk of tokens at a time, and the account of what it can change.

    Attributes:
        tolerance: Share of the largest trace in a chunk that any of its matrices may lose.
    """

    def __init__(self, weight: Tensor, tolerance: float) -> None:
        """Start an account.

        Args:
            weight: Head weights (V, d) of every chunk.
            tolerance: See above.
        """
        self.tolerance = tolerance
        # Any point would do as the origin of bounds; most classes of a vocabulary are rare, and near this one.
        self._origin = weight.mean(0)
        self._squares = torch.cat(
            [
                (weight[begin : begin + _PANEL] - self._origin).square().sum(1)
                for begin in range(0, weight.shape[0], _PANEL)
            ]
        )
        self._bounds = [weight.new_empty(0)]
        self._relative = 0.0
        self._kept = 0

    def merge(self, whole: Moments) -> Iterator[tuple[slice, Moments]]:
        """Merge as many classes as the tolerance admits, those first that matter least to whom they matter most.

        Args:
            whole: Moments of a chunk with all classes; the probabilities are overwritten.

        Yields:
            Parts of the chunk's tokens, in order, and their moments of the classes that are left.
        """
        traces = whole.probabilities @ self._squares - (whole.mean + (whole.center - self._origin)).square().sum(1)
        largest = max(float(traces.max()), 0.0)
        for rows, cut in self._parts(whole.probabilities, slice(0, traces.shape[0]), self.tolerance * largest):
            moments, bound = self._without(whole, rows, cut)
            self._bounds.append(bound)
            self._relative = max(self._relative, float(bound.max()) / largest if largest > 0 else 0.0)
            self._kept += moments.probabilities.numel()
            yield rows, moments

    def _parts(self, probabilities: Tensor, rows: slice, budget: float) -> list[tuple[slice, _Cut]]:
        """Split tokens where the work that smaller sets of classes save is more than the pair products cost again."""
        whole = [(rows, _cut(probabilities[rows], self._squares, budget))]
        middle = (rows.start + rows.stop) // 2
        if middle - rows.start < _FEWEST_TOKENS:
            return whole
        halves = [
            part
            for half in (slice(rows.start, middle), slice(middle, rows.stop))
            for part in self._parts(probabilities, half, budget)
        ]
        return min(whole, halves, key=_work)

    def _without(self, whole: Moments, rows: slice, cut: _Cut) -> tuple[Moments, Tensor]:
        """Merge the classes of a cut for some tokens; return their moments and bounds of what they lost."""
        probabilities, shift = whole.probabilities[rows], self._origin - whole.center
        kept = probabilities[:, cut.classes]
        rest = probabilities.index_fill_(1, cut.classes, 0.0)
        mass = rest.sum(1, keepdim=True)
        root = mass.sqrt()
        # Their mean times root: its outer product is what stays of their second moments.
        mean = torch.where(mass > 0, (rest @ whole.weight - mass * self._origin) / root, 0.0)
        bound = cut.traces - (1 - _ROUNDING) * mean.square().sum(1)
        weight = whole.weight[cut.classes]
        return Moments(kept, weight, whole.mean[rows], whole.center, mean + root * shift), bound

    def result(self) -> Dropped:
        """Return what all the chunks so far have lost."""
        bound = torch.cat(self._bounds)
        return Dropped(bound, self._relative, self._kept / max(bound.numel() * self._squares.numel(), 1))


@dataclass(frozen=True)
class _Cut:
    """Classes that are kept, and traces (n) of what the others contribute around the origin."""

    classes: Tensor
    traces: Tensor


def _work(parts: list[tuple[slice, _Cut]]) -> int:
    """Return the products per pair of columns that forming these parts takes."""
    return sum((rows.stop - rows.start + _PAIR_TOKENS) * cut.classes.numel() for rows, cut in parts)


def _cut(probabilities: Tensor, squares: Tensor, budget: float) -> _Cut:
    """Find the classes that must stay for no token's trace to lose more than the budget."""
    order = (probabilities.amax(0) * squares).sort(stable=True).indices
    classes = squares.shape[0]
    sizes = sorted({math.ceil(classes * _STEP**cut) for cut in range(_CUTS + 1)}, reverse=True)
    ends = [classes - size for size in sizes]
    # A column per step from one cut to the next: one product gives every token's loss in every step.
    columns = squares.new_zeros(classes, len(ends))
    for number, (begin, end) in enumerate(itertools.pairwise(ends), 1):
        columns[order[begin:end], number] = squares[order[begin:end]]
    traces = (1 + _ROUNDING) * (probabilities @ columns).cumsum(1)
    best = max(int((traces.amax(0) <= budget).sum()) - 1, 0)
    return _Cut(order[ends[best] :].sort().values, traces[:, best])
