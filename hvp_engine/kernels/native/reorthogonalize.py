"""Batched reorthogonalisation on the CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvp_engine.kernels.loader import native
from hvp_engine.kernels.streams import Projection, Rule

__all__ = ["reorthogonalize"]

READS_SCALED_ROWS = True


def reorthogonalize(table: NDArray[np.int64], rule: Rule, found: Projection) -> None:
    """Make each vector orthogonal, in place, to the leading rows of its basis.

    Args:
        table: As `hvp_engine.kernels.streams.stream_table` gives it.
        rule: As in `hvp_engine.kernels.reorthogonalize.reorthogonalize`.
        found: Filled; its coefficients are given as zeros.
    """
    native.reorthogonalize(table, *rule.numbers, found.coefficients.numpy(), found.norms.numpy(), found.lost.numpy())
