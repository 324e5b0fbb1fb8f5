"""Whether a compiled product is the product: compared with a backward pass once, on a vector of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from hvp_engine.blocks import ResolvedBlock
from hvp_engine.problem.precision import Precision, rounding

__all__ = ["difference", "probe"]

_ALLOWED: dict[Precision, float] = {"fp64": 1e-10, "fp32": 1e-5, "tf32": 2e-3, "bf16": 2e-2}
_ROUNDINGS = 32.0  # of the whole product that each part may be off
_SEED = 0x5EED


def probe(like: Tensor, number: int) -> Tensor:
    """Return a vector, or several, in which no number is special, the same ones every time.

    Args:
        like: Of that shape, dtype and device.
        number: Which of them.
    """
    generator = torch.Generator().manual_seed(_SEED + number)
    drawn = torch.randn(like.shape, generator=generator)
    return drawn.to(like.device, like.dtype)


def difference(block: ResolvedBlock, found: Tensor, expected: Tensor, precision: Precision) -> float | None:
    """Compare products (..., numel) part by part; None where they agree but for rounding.

    Returns:
        The largest relative difference of a part from what it should be; parts that cancel have roundings of the whole
        product.
    """
    same = found.isfinite() == expected.isfinite()
    if not bool(same.all()):
        return float("inf")
    error = (found - expected).masked_fill_(~found.isfinite(), 0.0)
    whole = expected.masked_fill(~expected.isfinite(), 0.0)
    errors, sizes = _norms(block, error), _norms(block, whole)
    allowed = _ALLOWED[precision]
    scale = sizes + _ROUNDINGS * rounding(precision) / allowed * float(sizes.norm())
    worst = float((errors / scale).nan_to_num(nan=0.0, posinf=float("inf")).max())
    return worst if worst > allowed else None


def _norms(block: ResolvedBlock, vectors: Tensor) -> Tensor:
    parts = [piece.reshape(-1).double().norm() for piece in block.split(vectors)]
    return torch.stack(parts)
