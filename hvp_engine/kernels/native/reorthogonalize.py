"""Batched reorthogonalisation on the CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.streams import Projection

__all__ = ["reorthogonalize"]

READS_SCALED_ROWS = True


def reorthogonalize(table: NDArray[np.int64], found: Projection) -> None:
    """Make each vector orthogonal, in place, to the leading rows of its basis.

    Args:
        table: As `hvp_engine.kernels.streams.stream_table` gives it.
        found: Filled; its coefficients are given as zeros.
    """
    native.reorthogonalize(table, found.coefficients.numpy(), found.norms.numpy(), found.lost.numpy())
