"""The Hessian of a two-layer net's hidden layer in closed form, and its blocks between neurons against their own."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hvp_engine.experiments.exact import FloatArray
from hvp_engine.experiments.models.two_layer import TwoLayer


def closed_form(model: TwoLayer, batch: tuple[Tensor, Tensor]) -> FloatArray:
    """Compute the hidden layer's block of the Hessian of the mean cross-entropy, (width x d, width x d).

    With class probabilities p and the columns v_i of V, H_ij is the mean over samples x of 1[w_i'x > 0] 1[w_j'x > 0]
    (sum_c p_c v_ci v_cj - (p'v_i)(p'v_j)) x x'.

    Args:
        model: The net.
        batch: Inputs (N, d) and classes (N,), which do not enter.
    """
    w, v = (layer.weight.detach().double().numpy(force=True) for layer in (model.fc1, model.fc2))
    x = batch[0].double().numpy(force=True)
    active = (x @ w.T > 0.0).astype(np.float64)
    logits = np.maximum(x @ w.T, 0.0) @ v.T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    mean = p @ v
    curvature = np.einsum("nc,ci,cj->nij", p, v, v, optimize=True) - mean[:, :, None] * mean[:, None, :]
    scale = curvature * active[:, :, None] * active[:, None, :] / len(x)
    blocks = np.einsum("nij,na,nb->iajb", scale, x, x, optimize=True)
    return np.asarray(blocks.reshape(w.size, w.size))


def between_over_within(matrix: FloatArray, neurons: int) -> float:
    """Return the mean norm of the blocks between two of so many neurons over that of a neuron's own."""
    size = len(matrix) // neurons
    norms = np.sqrt(np.square(matrix).reshape(neurons, size, neurons, size).sum(axis=(1, 3)))
    return float(norms[~np.eye(neurons, dtype=bool)].mean() / np.diag(norms).mean())
