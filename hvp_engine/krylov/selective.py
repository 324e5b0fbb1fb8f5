"""Selective reorthogonalisation: the basis is read only where the estimated loss of orthogonality grows too large.

Each stream decides by itself, from its coefficients (:mod:`hvp_engine.krylov.omega`). Every step takes out the
components along the newest two vectors; once the estimate of the next vector passes the square root of the rounding, it
and the newest one are made orthogonal to the whole basis: two in succession, for the recurrence has two (Simon 1984).
A basis that cannot correct its newest vector has the next one of the stream reorthogonalised in its place. One that
rounds its vectors leaves about as much as it finds when there is nothing but their rounding to find, and estimates go
on from that: where rounding is coarse, such as that of bf16 in small blocks, every step reads the basis.

The decision is the host's. It reads two numbers per stream in every step, and so waits for a device that computes
beside it; a basis is read less often in exchange.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.krylov.basis import Basis, Orthogonalized, Slot
from hvp_engine.krylov.omega import Omega


class Selection:
    """Decides for every stream of a wave which steps read its basis.

    Attributes:
        left: (streams, steps) fp64: largest cosines after the steps that did, 0 for the others; a checkpoint keeps
            them, for the estimates follow from them.
    """

    def __init__(self, streams: int, steps: int, eps: float, noise: float) -> None:
        """Begin with the start vectors; for the arguments see :class:`Omega`."""
        self.left = torch.zeros((streams, steps), dtype=torch.float64, device="cpu")
        self._eps = eps
        self._sizes = (streams, steps, eps, noise)
        self._omega = Omega(*self._sizes)
        self._again = np.zeros(streams, dtype=np.bool_)

    def resume(
        self,
        basis: Basis,
        position: int,
        alphas: npt.NDArray[np.float64],
        betas: npt.NDArray[np.float64],
        steps: npt.NDArray[np.int64],
    ) -> None:
        """Take the estimates to where ``position`` steps left them, by what they decided then.

        Args:
            basis: The vectors.
            position: Steps done by the live streams.
            alphas: (streams, steps) coefficients.
            betas: (streams, steps) norms of what was left.
            steps: (streams,) steps done.
        """
        self._omega = Omega(*self._sizes)
        self._again[:] = False
        for j in range(position):
            rows = np.flatnonzero(steps > j)
            self._omega.advance(j, rows, alphas[rows, j], betas[rows, j])
            chosen = rows[self.left[rows, j].numpy() > 0.0]
            left = self.left[chosen, j].numpy()
            self._omega.correct(j, chosen, alphas[chosen, j], betas[chosen, j], left, basis.corrects_newest)
            self._note(basis, chosen, rows)

    def project(
        self, basis: Basis, j: int, members: Sequence[int], slots: Sequence[Slot], vectors: Sequence[Tensor]
    ) -> Orthogonalized:
        """Do what :meth:`Basis.project` does in step ``j``, as far as it is needed.

        Args:
            basis: The vectors.
            j: Number of the step.
            members: The streams.
            slots: Where their vectors are.
            vectors: Their products, orthogonalised in place.
        """
        rows = np.asarray(members, dtype=np.int64)
        found = basis.project_newest(j, slots, vectors)
        alphas, betas = found.alphas.numpy(force=True), found.betas.numpy(force=True)
        estimates = self._omega.advance(j, rows, alphas, betas)
        chosen = np.flatnonzero(~(estimates <= self._omega.limit) | self._again[rows])
        loss = np.where(np.isfinite(estimates), estimates, 0.0)
        alphas, betas = alphas.copy(), betas.copy()
        if len(chosen):
            picked = chosen.tolist()
            whole = basis.project(j, [slots[i] for i in picked], [vectors[i] for i in picked], thorough=True)
            alphas[chosen] += whole.alphas.numpy(force=True)
            betas[chosen], loss[chosen] = whole.betas.numpy(force=True), whole.loss.numpy(force=True)
            left = np.maximum(self._eps, np.nan_to_num(loss[chosen], nan=1.0))
            self.left[rows[chosen], j] = torch.from_numpy(left)
            self._omega.correct(j, rows[chosen], alphas[chosen], betas[chosen], left, basis.corrects_newest)
        self._note(basis, rows[chosen], rows)
        device = found.betas.device
        return Orthogonalized(*(torch.from_numpy(array).to(device) for array in (alphas, betas, loss)))

    def _note(self, basis: Basis, chosen: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> None:
        """Note whose bases were read, of the streams that took a step."""
        first = chosen[~self._again[chosen]]
        self._again[rows] = False
        if not basis.corrects_newest:
            self._again[first] = True
