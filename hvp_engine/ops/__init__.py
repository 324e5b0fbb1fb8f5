"""Twice-differentiable fused operations: forward, backward and backward-of-backward are one pass each.

Each operation has the signature and semantics of its torch.nn.functional namesake and a plain PyTorch `*_ref`
beside it.
"""

from __future__ import annotations

from hvp_engine.ops.activations import gelu, gelu_ref, silu, silu_ref, swiglu, swiglu_ref
from hvp_engine.ops.layer_norm import layer_norm, layer_norm_ref
from hvp_engine.ops.rms_norm import rms_norm, rms_norm_ref
from hvp_engine.ops.swap import TwiceDifferentiable, twice_differentiable

# Further operations: add the import above, the names below, and a line to REPLACEMENTS in swap.py.
__all__ = [
    "TwiceDifferentiable",
    "gelu",
    "gelu_ref",
    "layer_norm",
    "layer_norm_ref",
    "rms_norm",
    "rms_norm_ref",
    "silu",
    "silu_ref",
    "swiglu",
    "swiglu_ref",
    "twice_differentiable",
]
"""Twice-differentiable fused operations, each beside its plain PyTorch reference."""
