"""Every fused operation beside the same function in elementary operations, on inputs quick to differentiate."""

import math

import torch

from hvp_engine import ops

TARGET = torch.tensor([0, 2, -100, 1])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLASS_WEIGHT = normal(5, seed=9).abs() + 0.5
SEEN = torch.tensor([[True, False, True, True], [True, True, False, False], [True, False, False, True]])
ADDED = normal(3, 4, seed=8)


def _gelu_tanh(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _layer_norm(x, w=1.0, b=0.0):
    shifted = x - x.mean(-1, keepdim=True)
    return shifted * torch.rsqrt((shifted * shifted).mean(-1, keepdim=True) + 0.1) * w + b


def _rms_norm(x, w):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 0.1) * w


def _cross_entropy(z, weight=None, smoothing=0.0):
    logs = z - torch.logsumexp(z, -1, keepdim=True)
    kept = TARGET != -100
    own = TARGET.where(kept, 0)
    weight = torch.ones(z.shape[1], dtype=z.dtype) if weight is None else weight
    of_class = -logs.gather(1, own[:, None])[:, 0] * weight[own]
    spread = -(logs * weight).sum(-1) / z.shape[1]
    return (((1 - smoothing) * of_class + smoothing * spread) * kept).sum() / (weight[own] * kept).sum()


def _attention(q, k, v, mask=None, causal=False):
    groups = q.shape[-3] // k.shape[-3]
    k, v = k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e30) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ v


_QKV = [normal(2, 2, 3, 4), normal(2, 2, 4, 4, seed=1), normal(2, 2, 4, 5, seed=2)]

# Name: operation, the same in elementary operations, inputs.
CASES = {
    "silu": (ops.silu, lambda x: x * torch.sigmoid(x), [normal(4, 5)]),
    "gelu": (ops.gelu, lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), [normal(4, 5)]),
    "gelu of tanh": (lambda x: ops.gelu(x, "tanh"), _gelu_tanh, [normal(4, 5)]),
    "swiglu": (ops.swiglu, lambda a, b: a * torch.sigmoid(a) * b, [normal(4, 5), normal(4, 5, seed=1)]),
    "swiglu of one tensor": (lambda a: ops.swiglu(a, a), lambda a: a * torch.sigmoid(a) * a, [0.5 * normal(4, 5)]),
    "softmax": (ops.softmax, lambda x: (x - x.logsumexp(-1, keepdim=True)).exp(), [normal(4, 5)]),
    "cross_entropy": (lambda z: ops.cross_entropy(z, TARGET), _cross_entropy, [normal(4, 5)]),
    "weighted cross_entropy": (
        lambda z: ops.cross_entropy(z, TARGET, CLASS_WEIGHT, label_smoothing=0.2),
        lambda z: _cross_entropy(z, CLASS_WEIGHT, 0.2),
        [normal(4, 5)],
    ),
    "layer_norm": (
        lambda x, w, b: ops.layer_norm(x, (5,), w, b, 0.1),
        _layer_norm,
        [normal(2, 3, 5), normal(5, seed=1), normal(5, seed=2)],
    ),
    "bare layer_norm": (lambda x: ops.layer_norm(x, (5,), None, None, 0.1), _layer_norm, [normal(2, 3, 5)]),
    "rms_norm": (lambda x, w: ops.rms_norm(x, (5,), w, 0.1), _rms_norm, [normal(2, 3, 5), normal(5, seed=1)]),
    "attention": (ops.attention, _attention, _QKV),
    "attention of one tensor": (lambda x: ops.attention(x, x, x), lambda x: _attention(x, x, x), _QKV[:1]),
    "grouped causal attention": (
        lambda q, k, v: ops.attention(q, k, v, is_causal=True, enable_gqa=True),
        lambda q, k, v: _attention(q, k, v, causal=True),
        [normal(2, 4, 3, 4), *_QKV[1:]],
    ),
    "masked attention": (
        lambda q, k, v: ops.attention(q, k, v, SEEN),
        lambda q, k, v: _attention(q, k, v, SEEN),
        _QKV,
    ),
    "biased attention": (
        lambda q, k, v: ops.attention(q, k, v, ADDED),
        lambda q, k, v: _attention(q, k, v, ADDED),
        _QKV,
    ),
    "linear_cross_entropy": (
        lambda h, w, b: ops.linear_cross_entropy(h, w, TARGET, b),
        lambda h, w, b: _cross_entropy(h @ w.T + b),
        [normal(4, 3), normal(5, 3, seed=1), normal(5, seed=2)],
    ),
    "linear_cross_entropy with logits": (
        lambda h, w: ops.linear_cross_entropy(
            h, w, TARGET, class_weight=CLASS_WEIGHT, label_smoothing=0.1, keep_logits=True
        ),
        lambda h, w: _cross_entropy(h @ w.T, CLASS_WEIGHT, 0.1),
        [normal(4, 3), normal(5, 3, seed=1)],
    ),
    "embedding": (
        lambda w: ops.embedding(TARGET.clamp(min=0), w),
        lambda w: w[TARGET.clamp(min=0)],
        [normal(4, 5)],
    ),
}
