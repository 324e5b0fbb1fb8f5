"""Linear head and cross-entropy, a chunk of tokens at a time; no tokens x classes array outlives its chunk.

Large products run in torch (MKL, cuBLAS), the element-wise middle in one fused pass that works in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from hvp_engine.kernels.cross_entropy import cross_entropy_backward, cross_entropy_forward, cross_entropy_hvp
from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.class_targets import ClassTargets
from hvp_engine.ops.head.room import HeadRoom

__all__ = ["HeadInputs", "HeadOptions", "Part", "Tangents", "Wanted", "head_backward", "head_forward", "head_hvp"]

MIN_CHUNK_ROWS = 64


@dataclass(frozen=True)
class HeadOptions(ClassTargets):
    """Options of a head's targets, and how much of the logits exists at once.

    Attributes:
        room: Sizes of chunks and panels.
    """

    room: HeadRoom


@dataclass(frozen=True)
class HeadInputs:
    """A head's inputs, contiguous: logits = hidden @ weight.T + bias.

    Attributes:
        hidden: Hidden states (R, d).
        weight: Weights (V, d).
        bias: Bias (V) or None.
        target: Class indices (R), int64.
        class_weight: Class weights (V) in the accumulator type, or None.
        options: Options of the targets, sizes of chunks.
        kept_logits: Logits (R, V) kept from the forward pass, or None to compute them again.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    class_weight: Tensor | None
    options: HeadOptions
    kept_logits: Tensor | None = None

    def contiguous(self) -> HeadInputs:
        """Return the head with contiguous tensors, as the kernels need them."""
        return replace(
            self,
            hidden=self.hidden.contiguous(),
            weight=self.weight.contiguous(),
            target=self.target.contiguous(),
        )

    def chunk_rows(self) -> int:
        """Return the number of tokens per chunk; it depends on shapes, dtype and room only."""
        row_bytes = max(self.weight.shape[0] * self.hidden.element_size(), 1)
        return max(MIN_CHUNK_ROWS, self.options.room.chunk_bytes // row_bytes // 16 * 16)

    def chunks(self) -> Iterator[slice]:
        """Yield the chunks of tokens."""
        rows = self.hidden.shape[0]
        step = self.chunk_rows()
        for begin in range(0, rows, step):
            yield slice(begin, min(begin + step, rows))

    def buffer(self) -> Tensor:
        """Allocate a buffer for one chunk of logits, reused by all chunks."""
        rows = min(self.hidden.shape[0], self.chunk_rows())
        return self.hidden.new_empty(rows, self.weight.shape[0])

    def logits(self, rows: slice, out: Tensor) -> Tensor:
        """Compute a chunk's logits into `out`, or return the kept ones."""
        if self.kept_logits is not None:
            return self.kept_logits[rows]
        out = out[: rows.stop - rows.start]
        if self.bias is None:
            return torch.mm(self.hidden[rows], self.weight.t(), out=out)
        return torch.addmm(self.bias, self.hidden[rows], self.weight.t(), out=out)


@dataclass(frozen=True)
class Wanted:
    """Which gradients a pass computes."""

    hidden: bool
    weight: bool
    bias: bool
    slope: bool = False


class Part(Enum):
    """Parts of the second derivative of a head: the logits' own curvature, and the head's, which multiplies twice."""

    WHOLE = "whole"
    GAUSS_NEWTON = "of the loss in the logits"
    RESIDUAL = "of the logits in hidden states and weights"


class _Sum:
    """A sum over chunks, in the accumulator type when there is more than one chunk to round."""

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.dtype = like.dtype
        self.value = torch.zeros(shape, dtype=accumulator(like.dtype), device=like.device)

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add left.T @ right."""
        if self.value.dtype == self.dtype:
            self.value.addmm_(left.t(), right)
        else:
            self.value.add_(torch.mm(left.t(), right))

    def add_columns(self, matrix: Tensor) -> None:
        """Add the sums of the matrix's columns."""
        self.value.add_(matrix.sum(0, dtype=self.value.dtype))

    def result(self) -> Tensor:
        return self.value.to(self.dtype)


def head_forward(head: HeadInputs, keep_logits: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Compute row losses (R), row statistics (R, 2), and the logits (R, V) if kept, else (0, V).

    The statistics of a token are its largest logit m and 1 / sum(exp(z - m)).
    """
    head = head.contiguous()
    rows, classes = head.hidden.shape[0], head.weight.shape[0]
    head.options.check(head.target, classes)
    statistics = head.hidden.new_empty(rows, 2, dtype=accumulator(head.hidden.dtype))
    loss = statistics.new_empty(rows)
    kept = head.hidden.new_empty(rows if keep_logits else 0, classes)
    buffer = kept if keep_logits else head.buffer()
    for chunk in head.chunks():
        logits = head.logits(chunk, buffer[chunk] if keep_logits else buffer)
        rows_of_chunk = head.options.rows(logits, head.target[chunk], head.class_weight)
        cross_entropy_forward(rows_of_chunk, statistics[chunk], loss[chunk])
    return loss, statistics, kept


def head_backward(head: HeadInputs, statistics: Tensor, scale: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
    """Compute gradients of sum(scale * loss) wrt hidden, weight and bias; those not wanted are empty."""
    head = head.contiguous()
    statistics, scale = statistics.contiguous(), scale.contiguous()
    (rows, d), classes = head.hidden.shape, head.weight.shape[0]
    grad_hidden = head.hidden.new_empty(rows if wanted.hidden else 0, d)
    grad_weight = _Sum((classes if wanted.weight else 0, d), head.weight)
    grad_bias = _Sum((classes if wanted.bias else 0,), head.weight)
    buffer = head.buffer()
    for chunk in head.chunks():
        logits = head.logits(chunk, buffer)
        grad = buffer[: chunk.stop - chunk.start]  # the logits themselves unless those are kept
        rows_of_chunk = head.options.rows(logits, head.target[chunk], head.class_weight)
        cross_entropy_backward(rows_of_chunk, statistics[chunk], scale[chunk], grad)
        if wanted.hidden:
            torch.mm(grad, head.weight, out=grad_hidden[chunk])
        if wanted.weight:
            grad_weight.add_product(grad, head.hidden[chunk])
        if wanted.bias:
            grad_bias.add_columns(grad)
    return grad_hidden, grad_weight.result(), grad_bias.result()


@dataclass(frozen=True)
class Tangents:
    """Directions (K, ...) in hidden (R, d), weight (V, d) and bias (V); None stands for zero."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def logits(self, k: int, head: HeadInputs, rows: slice, out: Tensor) -> Tensor:
        """Compute the tangent of a chunk's logits along direction k into `out`."""
        out = out[: rows.stop - rows.start]
        filled = False
        if self.hidden is not None:
            torch.mm(self.hidden[k, rows], head.weight.t(), out=out)
            filled = True
        if self.weight is not None:
            if filled:
                out.addmm_(head.hidden[rows], self.weight[k].t())
            else:
                torch.mm(head.hidden[rows], self.weight[k].t(), out=out)
            filled = True
        if self.bias is not None:
            if filled:
                out.add_(self.bias[k])
            else:
                out.copy_(self.bias[k].expand_as(out))
        return out

    def add_products(self, k: int, grad: Tensor, rows: slice, wanted: Wanted, hidden: Tensor, weight: _Sum) -> None:
        """Add a chunk's products of the logits' gradient g and direction k, g u_W and g' u_h, where they are wanted."""
        if wanted.hidden and self.weight is not None:
            hidden[rows].addmm_(grad, self.weight[k])
        if wanted.weight and self.hidden is not None:
            weight.add_product(grad, self.hidden[k, rows])


def head_hvp(
    head: HeadInputs,
    statistics: Tensor,
    scale: Tensor,
    tangents: Tangents,
    count: int,
    wanted: Wanted,
    part: Part = Part.WHOLE,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiate `head_backward` and the losses along K directions.

    With logits z, their gradient g and tangent t = u_h W' + h u_W' + u_b, and the product q = H t of the row
    Hessians: d grad_hidden = q W + g u_W, d grad_weight = q' h + g' u_h, d grad_bias = sum q,
    d loss = (g / scale) t.

    Args:
        head: The head.
        statistics: Row statistics (R, 2) from `head_forward`.
        scale: Upstream gradient (R) of the losses.
        tangents: The directions.
        count: Their number K.
        wanted: Derivatives to compute; the others are empty.
        part: Which terms of them: those with q (Gauss-Newton), those with g u (residual), or both.

    Returns:
        Derivatives of the gradients wrt hidden (K, R, d), weight (K, V, d), bias (K, V), and of the losses (K, R).
    """
    head = head.contiguous()
    statistics, scale = statistics.contiguous(), scale.contiguous()
    (rows, d), classes = head.hidden.shape, head.weight.shape[0]
    out_hidden = head.hidden.new_empty(count, rows if wanted.hidden else 0, d)
    if part == Part.RESIDUAL:
        out_hidden.zero_()
    out_weight = [_Sum((classes if wanted.weight else 0, d), head.weight) for _ in range(count)]
    out_bias = [_Sum((classes if wanted.bias else 0,), head.weight) for _ in range(count)]
    slope = statistics.new_empty(count, rows if wanted.slope else 0)
    needs_product = part != Part.RESIDUAL and (wanted.hidden or wanted.weight or wanted.bias)
    crossed = (wanted.hidden and tangents.weight is not None) or (wanted.weight and tangents.hidden is not None)
    needs_grad = part != Part.GAUSS_NEWTON and crossed
    buffer, tangent_buffer = head.buffer(), head.buffer()
    for chunk in head.chunks():
        logits = head.logits(chunk, buffer)
        rows_of_chunk = head.options.rows(logits, head.target[chunk], head.class_weight)
        for k in range(count if needs_product or wanted.slope else 0):
            product = tangents.logits(k, head, chunk, tangent_buffer)
            cross_entropy_hvp(
                rows_of_chunk,
                statistics[chunk],
                scale[chunk],
                product,
                product if needs_product else None,
                slope[k, chunk] if wanted.slope else None,
            )
            if wanted.hidden:
                torch.mm(product, head.weight, out=out_hidden[k, chunk])
            if wanted.weight:
                out_weight[k].add_product(product, head.hidden[chunk])
            if wanted.bias:
                out_bias[k].add_columns(product)
        if not needs_grad:
            continue
        grad = buffer[: chunk.stop - chunk.start]
        cross_entropy_backward(rows_of_chunk, statistics[chunk], scale[chunk], grad)
        for k in range(count):
            tangents.add_products(k, grad, chunk, wanted, out_hidden[k], out_weight[k])
    weight, bias = (torch.stack([part.result() for part in parts]) for parts in (out_weight, out_bias))
    return out_hidden, weight, bias, slope
