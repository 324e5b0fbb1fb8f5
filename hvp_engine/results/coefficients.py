"""What the Lanczos streams of one block found, as plain arrays: all that readings and stopping rules start from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hvp_engine.results.smoothing import FloatArray


@dataclass(frozen=True, eq=False)
class Coefficients:
    """The tridiagonal matrices of a block's probes, and what their recurrences left.

    Attributes:
        numel: Number of the block's parameters, n.
        alphas: Diagonals, float64 of shape (probes, m); zero from ``steps`` on.
        betas: Off-diagonals, float64 of shape (probes, m - 1); zero from ``steps - 1`` on.
        steps: Lanczos steps of each probe, int64 of shape (probes,).
        residuals: Norm of what was left after each probe's last step (beta_m), float64 of shape (probes,): 0 where its
            Krylov space is exhausted, nan where it is not known.
        noise: Relative error of one product, ``|error| / |H v|``; 0 counts rounding of the recurrence alone.
        reorthogonalized: Whether the Lanczos vectors were kept orthogonal; without, ghosts of converged nodes appear.
    """

    numel: int
    alphas: FloatArray
    betas: FloatArray
    steps: NDArray[np.int64]
    residuals: FloatArray
    noise: float = 0.0
    reorthogonalized: bool = True

    @property
    def probes(self) -> int:
        """Number of probes."""
        return len(self.steps)

    def truncated(self, steps: int) -> Coefficients:
        """Return what was known after ``steps`` steps, at least 1; probes that ended before stay as they are."""
        m = self.alphas.shape[1]
        if steps >= m:
            return self
        cut = self.steps > steps
        return replace(
            self,
            alphas=self.alphas[:, :steps],
            betas=self.betas[:, : steps - 1],
            steps=np.minimum(self.steps, steps),
            residuals=np.where(cut, self.betas[:, steps - 1], self.residuals),
        )

    def of_probes(self, count: int) -> Coefficients:
        """Return the first ``count`` probes."""
        return replace(
            self,
            alphas=self.alphas[:count],
            betas=self.betas[:count],
            steps=self.steps[:count],
            residuals=self.residuals[:count],
        )
