"""Lanczos on many streams in lock step (Golub & Van Loan, Matrix Computations, 10.3; Parlett, ch. 13).

A stream is one (block, probe) pair. One step multiplies every live stream's newest vector by its Hessian block in one
sweep, orthogonalises the products against the streams' own bases, twice, in one call, and ends the streams whose Krylov
space is exhausted. Scalars are float64 whatever the vectors are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.errors import ObjectiveError
from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.krylov.basis import Basis

Matmat = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
Stream = tuple[str, int]

# A residual below this many units of rounding, relative to ||T||, is noise of the product: the space is exhausted.
_BREAKDOWN = 16.0


@dataclass(frozen=True)
class LanczosSettings:
    """How to run the recurrence.

    Attributes:
        steps: Largest number of steps.
        reorthogonalize: ``"full"`` against the whole basis, or ``"none"`` (the last two vectors only).
        basis_dtype: Dtype of the stored basis under ``"full"``.
    """

    steps: int
    reorthogonalize: Literal["full", "none"]
    basis_dtype: torch.dtype

    @property
    def store_dtype(self) -> torch.dtype | None:
        """Dtype of the stored basis; None where there is none."""
        return self.basis_dtype if self.reorthogonalize == "full" else None


class BatchedLanczos:
    """The state of all streams of one wave.

    Attributes:
        streams: The (block, probe) pairs, grouped by block.
        alphas: (streams, steps) float64.
        betas: (streams, steps) float64; ``betas[s, j]`` couples vectors j and j + 1.
        steps: (streams,) int64: steps done, final where ``live`` is False.
        live: (streams,) bool.
        lost: (streams,) float64: largest cosine between a new vector and its basis found by the second pass.
        norms: (streams,) float64: running estimate of ||T||.
        consistent: False while a step is being recorded; such a state must not be saved.
        position: Steps done by the live streams.
    """

    def __init__(
        self,
        matmat: Matmat,
        starts: Mapping[str, Mapping[int, Tensor]],
        settings: LanczosSettings,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Take the start vectors.

        Args:
            matmat: Multiplies (k, numel) vectors per block.
            starts: Unit start vectors (numel,) by block and probe number.
            settings: How to run.
            dtype: Working dtype.
            device: Where vectors live.
        """
        self._matmat = matmat
        self._settings = settings
        self._eps = float(torch.finfo(dtype).eps)
        self.streams: list[Stream] = [(block, number) for block, probes in starts.items() for number in probes]
        count = len(self.streams)
        self.alphas = np.zeros((count, settings.steps))
        self.betas = np.zeros((count, settings.steps))
        self.steps = np.zeros(count, dtype=np.int64)
        self.live = np.ones(count, dtype=bool)
        self.lost = np.zeros(count)
        self.norms = np.zeros(count)
        self.position = 0
        self.consistent = True
        self.bases: dict[str, Basis] = {}
        self._members: dict[str, list[int]] = {}
        self._numel: dict[str, int] = {}
        for s, (block, _) in enumerate(self.streams):
            self._members.setdefault(block, []).append(s)
        for block, probes in starts.items():
            numel = next(iter(probes.values())).numel()
            capacity = min(settings.steps, numel)
            basis = Basis(len(probes), capacity, numel, dtype, settings.store_dtype, device)
            for row, start in enumerate(probes.values()):
                basis.put(0, row, start.to(device, dtype))
            self.bases[block], self._numel[block] = basis, numel

    @property
    def finished(self) -> bool:
        """Whether no stream has a step left."""
        return not self.live.any()

    def step(self) -> int:
        """Advance every live stream by one step; returns how many streams advanced.

        Raises:
            ObjectiveError: A product is not finite.
        """
        j = self.position
        rows = {b: [r for r, s in enumerate(m) if self.live[s]] for b, m in self._members.items()}
        rows = {block: live for block, live in rows.items() if live}
        products = self._matmat({b: self._newest(b, live) for b, live in rows.items()})
        order = [(block, i, row) for block, live in rows.items() for i, row in enumerate(live)]
        vectors = [products[block][i] for block, i, _ in order]
        alphas, betas, lost = self._orthogonalise(order, vectors)
        self._refuse_nonfinite(order, alphas, betas)
        self.consistent = False
        for (block, _, row), vector, alpha, beta, cosine in zip(order, vectors, alphas, betas, lost, strict=True):
            s = self._members[block][row]
            before = self.betas[s, j - 1] if j else 0.0
            self.norms[s] = max(self.norms[s], abs(alpha) + beta + before)
            self.alphas[s, j], self.steps[s] = alpha, j + 1
            self.lost[s] = max(self.lost[s], cosine)
            exhausted = beta <= _BREAKDOWN * self._eps * self.norms[s]
            if exhausted or j + 1 == min(self._settings.steps, self._numel[block]):
                self.live[s] = False
                continue
            self.betas[s, j] = beta
            self.bases[block].put(j + 1, row, vector.div_(beta))
        self.position = j + 1
        self.consistent = True
        return len(order)

    def release(self) -> None:
        """Free the vectors of a finished wave; the scalars stay."""
        self.bases.clear()

    def orthogonality(self) -> dict[Stream, float]:
        """||Q'Q - I|| of every stream's stored basis."""
        return {
            self.streams[s]: self.bases[block].orthogonality(row, int(self.steps[s]))
            for block, members in self._members.items()
            for row, s in enumerate(members)
        }

    def _newest(self, block: str, rows: list[int]) -> Tensor:
        newest = self.bases[block].get(self.position)
        return newest if len(rows) == newest.shape[0] else newest[rows]

    def _orthogonalise(
        self, order: list[tuple[str, int, int]], vectors: list[Tensor]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Orthogonalise products in place; returns each stream's alpha, beta and lost orthogonality."""
        j = self.position
        bases = [self.bases[block] for block, _, _ in order]
        stores = [b.store[row] for b, (_, _, row) in zip(bases, order, strict=True) if b.store is not None]
        windows = [b.window[row] for b, (_, _, row) in zip(bases, order, strict=True) if b.window is not None]
        if not windows:
            done = reorthogonalize(stores, vectors, [j + 1] * len(vectors))
            alphas, lost = done.coefficients[:, j], done.lost
        else:
            # The unrounded window first: it takes out the large components alpha and beta. What the rounded older
            # vectors take out afterwards is small, so that their rounding is multiplied by something small.
            done = reorthogonalize(windows, vectors, [min(j + 1, 2)] * len(vectors))
            alphas, lost = done.coefficients[:, j % 2], done.lost
            if stores:
                done = reorthogonalize(stores, vectors, [max(0, j - 1)] * len(vectors))
                lost = torch.maximum(lost, done.lost)
        return alphas.cpu().numpy(), done.norms.cpu().numpy(), lost.cpu().numpy()

    def _refuse_nonfinite(
        self,
        order: list[tuple[str, int, int]],
        alphas: npt.NDArray[np.float64],
        betas: npt.NDArray[np.float64],
    ) -> None:
        bad = ~(np.isfinite(alphas) & np.isfinite(betas))
        if bad.any():
            block, _, row = order[int(np.argmax(bad))]
            number = self.streams[self._members[block][row]][1]
            raise ObjectiveError(
                f"The Hessian-vector product of block {block!r} (probe {number}) is not finite at step "
                f"{self.position}: an operation's second derivative is infinite or not a number there (sqrt or norm at "
                "zero, log of zero), or the arithmetic overflows; try precision='fp64', or add a small epsilon to the "
                "operation."
            )
