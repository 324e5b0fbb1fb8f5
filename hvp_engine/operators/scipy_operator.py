"""A block's products as SciPy's iterative solvers take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hvp_engine.errors import ConfigurationError


def linear_operator(numel: int, dtype: torch.dtype, multiply: Callable[[Any], Any]) -> Any:
    """Make a symmetric ``scipy.sparse.linalg.LinearOperator``.

    Args:
        numel: Rows and columns.
        dtype: Of vectors and products, float32 or float64.
        multiply: Takes an array of shape (numel,) or (numel, k) and returns one of that shape.

    Raises:
        ConfigurationError: SciPy is not installed.
    """
    try:
        from scipy.sparse.linalg import LinearOperator  # noqa: PLC0415 - no dependency of the package
    except ImportError as error:
        raise ConfigurationError(
            "This needs SciPy, which is not installed: pip install scipy, or this package with its extra [scipy]."
        ) from error
    return LinearOperator(
        (numel, numel),
        matvec=multiply,
        rmatvec=multiply,
        matmat=multiply,
        rmatmat=multiply,
        dtype=np.dtype(str(dtype).removeprefix("torch.")),
    )
