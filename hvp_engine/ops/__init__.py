"""Twice-differentiable fused operations: forward, backward and backward-of-backward are one pass each.

Each operation has the signature and semantics of its torch.nn.functional namesake and a plain PyTorch `*_ref`
beside it: :func:`attention`, :func:`cross_entropy`, :func:`linear_cross_entropy`, :func:`layer_norm`, :func:`rms_norm`,
:func:`gelu`, :func:`silu`, :func:`swiglu`, :func:`softmax`, :func:`embedding`. :func:`twice_differentiable` and
:func:`fuse_lm_head` swap them into a model as it runs; :func:`form_head_curvature` forms what products with a linear
head need.
"""

from __future__ import annotations

from hvp_engine.ops.activations import gelu, gelu_ref, silu, silu_ref, swiglu, swiglu_ref
from hvp_engine.ops.attention import attention, attention_ref
from hvp_engine.ops.cross_entropy import cross_entropy, cross_entropy_ref
from hvp_engine.ops.embedding import embedding, embedding_ref
from hvp_engine.ops.head.curvature import HeadCurvature, form_head_curvature
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref
from hvp_engine.ops.layer_norm import layer_norm, layer_norm_ref
from hvp_engine.ops.rms_norm import rms_norm, rms_norm_ref
from hvp_engine.ops.softmax import softmax, softmax_ref
from hvp_engine.ops.swap import TwiceDifferentiable, fuse_lm_head, twice_differentiable

__all__ = [
    "HeadCurvature",
    "TwiceDifferentiable",
    "attention",
    "attention_ref",
    "cross_entropy",
    "cross_entropy_ref",
    "embedding",
    "embedding_ref",
    "form_head_curvature",
    "fuse_lm_head",
    "gelu",
    "gelu_ref",
    "layer_norm",
    "layer_norm_ref",
    "linear_cross_entropy",
    "linear_cross_entropy_ref",
    "rms_norm",
    "rms_norm_ref",
    "silu",
    "silu_ref",
    "softmax",
    "softmax_ref",
    "swiglu",
    "swiglu_ref",
    "twice_differentiable",
]


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
