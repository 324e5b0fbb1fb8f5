"""How orthogonal Lanczos vectors are, estimated from the coefficients alone: Simon's recurrence.

The cosines omega of each new vector with all before it follow a three-term recurrence of their own (Simon, "The Lanczos
algorithm with partial reorthogonalization", Math. Comp. 42 (1984)): what grows in it is what grows in the vectors. Each
step adds the rounding of the vectors and the error of the product, by its measured size, always with the sign that
makes things worse. T is right to the rounding as long as all cosines stay below the rounding's square root.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class Omega:
    """The estimated cosines of the newest two vectors of many streams with all vectors before them.

    Attributes:
        limit: Largest cosine that harms no coefficient.
    """

    def __init__(self, streams: int, steps: int, eps: float, noise: float) -> None:
        """Begin with the start vectors.

        Args:
            streams: Number of streams.
            steps: Largest number of steps.
            eps: Rounding of the working dtype.
            noise: Relative error of one product, ``|error| / |A q|``.
        """
        self.limit = float(np.sqrt(eps))
        self._eps, self._noise = eps, noise
        self._alphas, self._betas = np.zeros((2, streams, steps))
        self._now, self._before = np.zeros((2, streams, steps + 1))
        self._now[:, 0] = 1.0

    def advance(self, j: int, rows: npt.NDArray[np.int64], alphas: FloatArray, betas: FloatArray) -> FloatArray:
        """Take step ``j`` of some streams; return the largest cosine (k,) of each one's next vector.

        It is inf where nothing is left to divide by, and nan where a coefficient is not finite.

        Args:
            j: Number of the step.
            rows: (k,) the streams.
            alphas: (k,) their coefficients.
            betas: (k,) norms of what is left.
        """
        self._alphas[rows, j], self._betas[rows, j] = alphas, betas
        a, b, now, before = self._alphas[rows], self._betas[rows], self._now[rows], self._before[rows]
        last = b[:, j - 1 : j] if j > 0 else np.zeros((len(rows), 1))
        own, left = alphas[:, None], betas[:, None]
        size = np.sqrt(own**2 + left**2 + last**2)  # of the product
        following = np.zeros_like(now)
        if j > 0:
            older = (a[:, :j] - own) * now[:, :j] + b[:, :j] * now[:, 1 : j + 1] - last * before[:, :j]
            older[:, 1:] += b[:, : j - 1] * now[:, : j - 1]
            worse = self._eps * (b[:, :j] + left) + self._noise * size
            with np.errstate(divide="ignore", invalid="ignore"):
                following[:, :j] = (older + np.copysign(worse, older)) / left
        # The first pass takes the components along the newest two out, whatever they are.
        following[:, max(0, j - 1) : j + 1] = self._eps
        following[:, j + 1] = 1.0
        self._before[rows], self._now[rows] = now, following
        largest: FloatArray = np.abs(following[:, : j + 1]).max(axis=1)
        return np.where(np.isfinite(alphas + betas), largest, np.nan)

    def correct(
        self, j: int, rows: npt.NDArray[np.int64], alphas: FloatArray, betas: FloatArray, left: FloatArray, both: bool
    ) -> None:
        """Note that the next vectors of some streams, after step ``j``, were made orthogonal to all before them.

        Args:
            j: Number of the step.
            rows: (k,) the streams.
            alphas: (k,) their coefficients, corrected.
            betas: (k,) norms of what is left, likewise.
            left: (k,) largest cosines that this left.
            both: Whether their newest vectors were made orthogonal, too.
        """
        self._alphas[rows, j], self._betas[rows, j] = alphas, betas
        self._now[rows, : j + 1] = left[:, None]
        if both:
            self._before[rows, :j] = left[:, None]
