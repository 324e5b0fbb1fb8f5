"""Curvature of a softmax head, kept as one d x d matrix per token instead of passing through the classes.

For logits z = W h + b, the cross-entropy's Hessian wrt the hidden state h of token n is w_n M_n with
M_n = W' (diag(p_n) - p_n p_n') W, the covariance of W's rows under the token's class probabilities p_n:
whatever the target. Its second moments are one product of the probabilities with the pairwise products of W's
columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.packed_symmetric import pack_covariance, packed_matvec, packed_size, pair_products
from hvp_engine.ops.arguments import check_operands
from hvp_engine.ops.head.dropping import Dropped, Dropping, Moments, check_tolerance

__all__ = [
    "HeadCost",
    "HeadCurvature",
    "form_head_curvature",
    "forming_bytes",
    "head_cost",
    "head_curvature_ref",
]

PROBABILITY_BYTES = 256 * 2**20  # probabilities held at once: tokens go through in chunks of this size
PANEL_PAIRS = 1024  # a panel of pair products, PANEL_CLASSES x PANEL_PAIRS, stays in the last-level cache
PANEL_CLASSES = 4096
_STORAGE = (torch.float32, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class HeadCurvature:
    """Matrices M_n of N tokens.

    Attributes:
        packed: Upper triangles (N, d (d + 1) / 2).
        hidden_size: d.
        lse: Log-sum-exps (N) of the logits, by which a loss recognises its own curvature.
        row_weight: Weights (N) that `apply` multiplies with; None stands for ones.
        dropped: What dropping classes can have changed; None where none were to be dropped.
    """

    packed: Tensor
    hidden_size: int
    lse: Tensor
    row_weight: Tensor | None = None
    dropped: Dropped | None = None

    def matvec(self, vectors: Tensor, row_weight: Tensor | None = None) -> Tensor:
        """Compute row_weight_n M_n u_n for vectors (K, N, d), any K at one read of the matrices."""
        product = packed_matvec(self.packed, vectors)
        return product if row_weight is None else product * row_weight.unsqueeze(-1)

    def apply(self, u: Tensor) -> Tensor:
        """Apply the weighted curvature.

        Args:
            u: Vectors (N, d) or (K, N, d).

        Returns:
            row_weight_n M_n u_n in the shape and dtype of u.

        Raises:
            ConfigurationError: The vectors do not belong to these tokens.
        """
        expected = (self.packed.shape[0], self.hidden_size)
        if u.dim() not in (2, 3) or u.shape[-2:] != expected:
            raise ConfigurationError(
                f"Vectors of shape {tuple(u.shape)} do not fit a head curvature of {expected[0]} "
                f"tokens and hidden size "
                f"{expected[1]}; pass (tokens, d) or (K, tokens, d)."
            )
        stacked = u if u.dim() == 3 else u.unsqueeze(0)
        return self.matvec(stacked, self.row_weight).view(u.shape).to(u.dtype)

    def check(self, lse: Tensor, hidden_size: int) -> None:
        """Raise ConfigurationError unless the curvature was formed at logits with these log-sum-exps (N)."""
        if self.hidden_size == hidden_size and self.lse.shape == lse.shape:
            difference = (self.lse - lse).abs() / (1.0 + lse.abs())
            if not bool((difference > 1e-2).any()):
                return
        raise ConfigurationError(
            "The head curvature belongs to other tokens, other parameters or another hidden "
            "size than this loss. Form "
            "it again with form_head_curvature from the same hidden states, head weights and bias."
        )


@dataclass(frozen=True)
class HeadCost:
    """Work and traffic of a head's second backward to the hidden states, with and without its curvature.

    Attributes:
        form_flop: To form the matrices, once.
        stored_bytes: Size of the matrices.
        apply_flop: To apply them to one vector per token.
        apply_bytes: Read and written by one application.
        general_flop: One second backward by the general path: logits, tangents and their way back.
        general_bytes: Least traffic of that: weights and chunked logits, tangents and products.
    """

    form_flop: float
    stored_bytes: int
    apply_flop: float
    apply_bytes: int
    general_flop: float
    general_bytes: int


def head_cost(
    tokens: int, hidden_size: int, classes: int, dtype: torch.dtype = torch.float32, kept_logits: bool = False
) -> HeadCost:
    """Predict the cost of a head's curvature against the general path.

    Args:
        tokens: N.
        hidden_size: d.
        classes: V.
        dtype: Storage of the matrices.
        kept_logits: Whether the general path keeps its logits.
    """
    product = 2.0 * tokens * classes * hidden_size
    pairs = packed_size(hidden_size)
    stored = tokens * pairs * dtype.itemsize
    vectors = 2 * tokens * hidden_size * 4
    return HeadCost(
        form_flop=2.0 * product + 2.0 * tokens * classes * pairs,
        stored_bytes=stored,
        apply_flop=2.0 * tokens * hidden_size**2,
        apply_bytes=stored + vectors,
        general_flop=product * (2 if kept_logits else 3),
        general_bytes=4 * (2 * classes * hidden_size + 6 * tokens * classes) + vectors,
    )


def forming_bytes(tokens: int, hidden_size: int, classes: int, dtype: torch.dtype) -> int:
    """Return what forming takes beside the matrices: probabilities of some tokens, twice over, and panels."""
    item = torch.float64.itemsize if dtype == torch.float64 else torch.float32.itemsize
    most = tokens * classes * item
    chunk = min(most, max(PROBABILITY_BYTES, classes * item))
    panels = chunk // max(classes, 1) + min(PANEL_CLASSES, classes) * item
    return int(2 * chunk + panels * min(PANEL_PAIRS, packed_size(hidden_size)))


def _probabilities(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return class probabilities (n, V) in `dtype` and log-sum-exps (n)."""
    logits = torch.nn.functional.linear(hidden, weight, None if bias is None else bias.to(dtype))
    lse = logits.logsumexp(-1)
    return logits.sub_(lse.unsqueeze(-1)).exp_(), lse


def _moments(probabilities: Tensor, weight: Tensor) -> Moments:
    """Return the moments of probabilities (n, V) and rows (V, d)."""
    mean = probabilities @ weight
    # Covariances do not depend on the origin; one near the means keeps moments and means from cancelling.
    center = mean.mean(0)
    mean -= center
    return Moments(probabilities, weight, mean, center)


def _form_chunk(chunk: Moments, packed: Tensor) -> Iterator[float]:
    """Fill the packed matrices (n, ...) of a chunk of tokens; yield the share done."""
    probabilities, weight = chunk.probabilities, chunk.weight
    (tokens, classes), d = probabilities.shape, weight.shape[1]
    width = min(PANEL_PAIRS, packed_size(d))
    moments = probabilities.new_empty(tokens, width)
    panel = probabilities.new_empty(min(PANEL_CLASSES, classes), width)
    for first in range(0, packed_size(d), width):
        last = min(first + width, packed_size(d))
        part = moments.view(-1)[: tokens * (last - first)].view(tokens, last - first).zero_()
        if chunk.merged is not None:
            pair_products(chunk.merged, torch.zeros_like(chunk.center), first, last, part)
        for begin in range(0, classes, PANEL_CLASSES):
            end = min(begin + PANEL_CLASSES, classes)
            products = panel.view(-1)[: (end - begin) * (last - first)].view(end - begin, last - first)
            pair_products(weight[begin:end], chunk.center, first, last, products)
            part.addmm_(probabilities[:, begin:end], products)
        pack_covariance(part, chunk.mean, first, last, packed)
        yield last / packed_size(d)


def _check_arguments(
    hidden: Tensor, weight: Tensor, row_weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype
) -> None:
    if weight.dim() != 2 or hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ConfigurationError(
            f"Hidden states of shape {tuple(hidden.shape)} and head weights of shape "
            f"{tuple(weight.shape)} do not fit: "
            "they must be (..., d) and (classes, d)."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ConfigurationError(
            f"The bias has shape {tuple(bias.shape)}; the head has {weight.shape[0]} classes, so "
            f"({weight.shape[0]},) is needed."
        )
    if dtype not in _STORAGE:
        raise ConfigurationError(f"A head curvature cannot be stored as {dtype}; use float32, bfloat16 or float64.")
    tokens = hidden.shape[:-1].numel()
    if row_weight is not None and row_weight.shape != (tokens,):
        raise ConfigurationError(
            f"Row weights of shape {tuple(row_weight.shape)} do not fit {tokens} tokens; pass shape ({tokens},)."
        )


@torch.no_grad()
def form_head_curvature(
    hidden: Tensor,
    weight: Tensor,
    row_weight: Tensor | None = None,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    report: Callable[[float], None] | None = None,
    tolerance: float = 0.0,
) -> HeadCurvature:
    """Form the curvature of a softmax head for every token.

    Costs 2 N V d (d + 1) / 2 FLOP once; an application then costs 2 d^2 per token instead of 4 V d.
    `head_cost` tells when that pays. The matrices are exact to rounding, unless a tolerance admits more: classes of
    little probability are then merged, see :mod:`hvp_engine.ops.head.dropping`, and their part of the work is saved.

    Args:
        hidden: Hidden states (..., d) of N tokens in all.
        weight: Head weights (V, d).
        row_weight: Weights (N) for `HeadCurvature.apply`, e.g. 1 / N for a mean and 0 for ignored tokens. A
            loss that is given the curvature uses its own weights instead.
        bias: Head bias (V).
        dtype: Storage: float32, bfloat16 (half the memory and time to apply) or float64. Sums are float32, or
            float64 for float64.
        out: Contiguous room (N, d (d + 1) / 2) of that dtype for the matrices, a mapped file for instance; None
            allocates.
        report: Called now and then with the share of the work that is done, from 0 to 1.
        tolerance: Share that a matrix's trace may lose by dropping classes, of the largest trace in its chunk of
            tokens; 0 keeps all classes. What it came to is the result's `dropped`.

    Returns:
        The curvature.

    Raises:
        ConfigurationError: Shapes do not fit, the storage type is none of these, or the tolerance is not in [0, 1).
    """
    operands = {"hidden": hidden, "weight": weight, "row_weight": row_weight, "bias": bias}
    check_operands("form_head_curvature", operands, ("row_weight", "bias"))
    _check_arguments(hidden, weight, row_weight, bias, dtype)
    check_tolerance(tolerance)
    rows = hidden.detach().reshape(-1, hidden.shape[-1])
    moment_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    (tokens, d), classes = rows.shape, weight.shape[0]
    wide_weight = weight.detach().to(moment_dtype).contiguous()
    packed = rows.new_empty(tokens, packed_size(d), dtype=dtype) if out is None else out
    lse = rows.new_empty(tokens, dtype=moment_dtype)
    step = max(1, PROBABILITY_BYTES // max(classes * moment_dtype.itemsize, 1))
    dropping = Dropping(wide_weight, tolerance) if tolerance > 0 else None
    with torch.autocast(rows.device.type, enabled=False):
        for begin in range(0, tokens, step):
            chunk = slice(begin, min(begin + step, tokens))
            probabilities, lse[chunk] = _probabilities(rows[chunk].to(moment_dtype), wide_weight, bias, moment_dtype)
            whole = _moments(probabilities, wide_weight)
            parts = [(slice(0, chunk.stop - begin), whole)] if dropping is None else dropping.merge(whole)
            for part, moments in parts:
                for done in _form_chunk(moments, packed[chunk][part]):
                    if report is not None:
                        report((begin + part.start + done * (part.stop - part.start)) / tokens)
    weights = None if row_weight is None else row_weight.detach().to(moment_dtype)
    return HeadCurvature(packed, d, lse, weights, None if dropping is None else dropping.result())


def head_curvature_ref(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Form, in plain PyTorch, dense matrices M_n (N, d, d) of hidden states (N, d)."""
    p = torch.nn.functional.linear(hidden, weight, bias).softmax(-1)
    mean = p @ weight
    second = torch.einsum("nv,vi,vj->nij", p, weight, weight)
    return second - mean.unsqueeze(2) * mean.unsqueeze(1)
