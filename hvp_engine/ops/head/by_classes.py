"""Second derivative of the linear head and cross-entropy wrt the hidden states, a panel of classes at a time.

Along a tangent u = W v of the logits, the derivative of a token's gradient is W' p (u - <p, u>), which needs the
mean <p, u> over all classes before any of them can be finished: two passes over tokens x classes. But that mean is
also <W'p, v>, and the mean weight W'p is known from the gradient. So a panel of classes goes through both products
and the element-wise pass between them while it is in cache, and the logits are all that is read from memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hvp_engine.kernels.softmax import softmax_tangent
from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.head.by_tokens import HeadInputs

__all__ = ["head_hidden_hvp", "mean_weights"]

PANEL_CLASSES = 4096  # at least: narrower panels make slower products (benchmarks/NOTES.md)
MIN_ROWS = 64


def mean_weights(head: HeadInputs, scale: Tensor, grad_hidden: Tensor) -> Tensor:
    """Recover W'p (R, d), accumulator type, from the gradient scale (mass W'p - hit w_target - smooth sum_c w_c W_c).

    Args:
        head: The head.
        scale: Upstream gradient (R) of the losses.
        grad_hidden: Gradient (R, d) wrt the hidden states.

    Returns:
        The mean weights; zero for tokens without gradient, whose second derivative is zero, too.
    """
    classes = head.weight.shape[0]
    mass = head.options.mass(head.target, head.class_weight, classes).to(scale.dtype)
    hit, index = head.options.hit(head.target, head.class_weight)
    total = grad_hidden.to(scale.dtype) / scale[:, None]
    total.addcmul_(hit[:, None].to(scale.dtype), head.weight[index].to(scale.dtype))
    if head.options.label_smoothing > 0:
        spread = head.weight.sum(0, dtype=scale.dtype) if head.class_weight is None else _weighted_sum(head)
        total.add_(spread, alpha=head.options.label_smoothing / classes)
    return total.div_(mass[:, None]).where((scale * mass != 0)[:, None], 0)


def _weighted_sum(head: HeadInputs) -> Tensor:
    assert head.class_weight is not None
    return head.class_weight @ head.weight.to(head.class_weight.dtype)


def _panels(head: HeadInputs, element_size: int) -> Iterator[tuple[slice, slice]]:
    """Yield panels of tokens and classes; they depend on shapes, dtype and room only."""
    rows, classes, size = head.hidden.shape[0], head.weight.shape[0], head.options.room.panel_bytes
    step = max(MIN_ROWS, min(rows, size // (PANEL_CLASSES * element_size)))
    width = max(PANEL_CLASSES, size // (step * element_size) // 16 * 16)
    for row in range(0, rows, step):
        for column in range(0, classes, width):
            yield slice(row, min(row + step, rows)), slice(column, min(column + width, classes))


class _PanelMemory:
    """Memory of one panel, used again by the next: fresh memory costs page faults."""

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_empty(0)

    def panel(self, rows: slice, classes: slice) -> Tensor:
        """Return memory for a panel; the first one is the largest."""
        shape = rows.stop - rows.start, classes.stop - classes.start
        size = shape[0] * shape[1]
        if size > self._memory.shape[0]:
            self._memory = self._memory.new_empty(size)
        return self._memory[:size].view(shape)


def _logits(head: HeadInputs, rows: slice, classes: slice, memory: _PanelMemory) -> Tensor:
    """Return some tokens' logits of some classes: the kept ones, or computed again."""
    if head.kept_logits is not None:
        return head.kept_logits[rows, classes]
    columns, out = head.weight[classes].t(), memory.panel(rows, classes)
    if head.bias is None:
        return torch.mm(head.hidden[rows], columns, out=out)
    return torch.addmm(head.bias[classes], head.hidden[rows], columns, out=out)


def head_hidden_hvp(
    head: HeadInputs, statistics: Tensor, row_weight: Tensor, mean_weight: Tensor, tangents: Tensor
) -> Tensor:
    """Differentiate the gradient wrt the hidden states along directions in the hidden states.

    The means that `mean_weight` gives are off by rounding, which would matter where one class has nearly all the
    probability. The products' own sums over the classes tell by how much, and W'p takes the difference back.

    Args:
        head: The head.
        statistics: Largest logit m and 1 / sum(exp(z - m)) of every token (R, 2).
        row_weight: Upstream gradient of the losses times the softmax's factor in their gradient (R).
        mean_weight: From `mean_weights` (R, d).
        tangents: Directions (K, R, d).

    Returns:
        The derivatives (K, R, d), in the hidden states' dtype.
    """
    head = head.contiguous()
    statistics, tangents = statistics.contiguous(), tangents.contiguous()
    factor = (row_weight * statistics[:, 1]).where(row_weight != 0, 0)  # an ignored token's logits may be anything
    center = (tangents.to(mean_weight.dtype) * mean_weight).sum(-1)
    totals = torch.zeros_like(center, dtype=torch.float64)
    out = torch.zeros_like(tangents, dtype=accumulator(tangents.dtype))
    memory, logits_memory = _PanelMemory(tangents), _PanelMemory(tangents)
    for row, column in _panels(head, tangents.element_size()):
        panel, weight = memory.panel(row, column), head.weight[column]
        logits = _logits(head, row, column, logits_memory)
        for tangent, product, mean, total in zip(tangents, out, center, totals, strict=True):
            torch.mm(tangent[row], weight.t(), out=panel)
            softmax_tangent(logits, statistics[row], factor[row], mean[row], panel, total[row])
            if product.dtype == panel.dtype:
                product[row].addmm_(panel, weight)
            else:
                product[row].add_(torch.mm(panel, weight))
    out.addcmul_(totals.to(out.dtype)[..., None], mean_weight, value=-1)
    return out.to(tangents.dtype)
