"""Embedding with a deterministic weight gradient, differentiable any number of times."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.embedding import gather_rows, sum_rows
from hvp_engine.ops.applies import fused_applies
from hvp_engine.ops.arguments import check_operands, check_tensor, run_plain
from hvp_engine.ops.autograd import BatchedFunction
from hvp_engine.ops.vmap import to_front

__all__ = ["embedding", "embedding_ref"]


# Names no row: gathers zeros, and is left out of sums. Padding has this token in the gradient.
_NOWHERE = torch.iinfo(torch.int64).min


def _check_tokens(tokens: Tensor, table_rows: int) -> None:
    wrong = (tokens >= table_rows) | (tokens < 0) & (tokens != _NOWHERE)
    if bool(wrong.any()):
        raise ConfigurationError(
            f"Token {int(tokens[wrong][0])} is not a row of the embedding; tokens must lie in 0 to {table_rows - 1}."
        )


def _offset(tokens: Tensor, table_rows: int) -> Tensor:
    """Let the tokens (B, N) of each example name rows of its own table of B; wrong ones stay wrong."""
    shift = torch.arange(tokens.shape[0], device=tokens.device).unsqueeze(1) * table_rows
    moved = torch.where(tokens < 0, tokens, tokens + shift)
    return torch.where(tokens < table_rows, moved, -tokens)


class _Gather(BatchedFunction):
    """Rows (N, d) of a table (V, d) at `tokens`, whose gradient goes to the rows at `grad_tokens`.

    Only the lookup of a forward pass looks at the tokens: on a GPU the host waits for the answer, and lookups in
    derivatives have the same tokens.
    """

    @staticmethod
    def forward(table: Tensor, tokens: Tensor, grad_tokens: Tensor, checked: bool) -> Tensor:
        if not checked:
            _check_tokens(tokens, table.shape[0])
        return gather_rows(table, tokens)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.table_rows = inputs[0].shape[0]
        ctx.save_for_backward(*inputs[1:3])
        ctx.save_for_forward(*inputs[1:3])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _Scatter.apply(grads[0], ctx.saved_tensors[1], ctx.table_rows), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        # As PyTorch does: forward mode differentiates the lookup itself, padding included.
        tokens, grad_tokens = ctx.saved_tensors
        result: Tensor = _Gather.apply(tangents[0], tokens, grad_tokens, True)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        tokens, grad_tokens = (to_front(size, dim, t) for t, dim in zip(args[1:3], in_dims[1:3], strict=True))
        table = args[0]
        if in_dims[0] is not None:
            table = table.movedim(in_dims[0], 0)
            tokens, grad_tokens = (_offset(t, table.shape[1]) for t in (tokens, grad_tokens))
            table = table.flatten(0, 1)
        rows = _Gather.apply(table, tokens.flatten(), grad_tokens.flatten(), args[3])
        return rows.unflatten(0, tokens.shape), 0


class _Scatter(BatchedFunction):
    """Sums of rows (N, d) in a table (V, d), at their tokens."""

    @staticmethod
    def forward(grad: Tensor, tokens: Tensor, table_rows: int) -> Tensor:
        return sum_rows(grad, tokens, table_rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.table_rows = inputs[2]
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        return _Gather.apply(grads[0], tokens, tokens, True), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        result: Tensor = _Scatter.apply(tangents[0], ctx.saved_tensors[0], ctx.table_rows)
        return result

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        size, table_rows = info.batch_size, args[2]
        grad, tokens = (to_front(size, dim, t) for t, dim in zip(args[:2], in_dims[:2], strict=True))
        tokens = _offset(tokens, table_rows)
        table = _Scatter.apply(grad.flatten(0, 1), tokens.flatten(), size * table_rows)
        return table.unflatten(0, (size, table_rows)), 0


def padding_tokens(node: Any) -> Tensor | None:
    """Return the tokens of an embedding that give no gradient to their rows.

    Args:
        node: A node of an autograd graph.

    Returns:
        The tokens, some of them several times; None if the node is not a lookup of `embedding`.
    """
    if getattr(type(node), "_forward_cls", None) is not _Gather:
        return None
    tokens, grad_tokens = node.saved_tensors
    padding: Tensor = tokens[(grad_tokens == _NOWHERE) & (tokens != _NOWHERE)]
    return padding


def embedding_ref(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Compute `embedding` in plain PyTorch."""
    return F.embedding(input, weight, padding_idx)


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Look up rows of a table; all derivatives are lookups and sums of rows again.

    Semantics of `torch.nn.functional.embedding` without renormalisation and sparse gradients. Each row of the
    weight gradient is summed by one thread in the order of its tokens, in float32 for bfloat16, so it has the
    same bits on any number of threads. Dtypes other than float32, float64 and bfloat16, and devices without
    fused kernels, run `embedding_ref`.

    Args:
        input: Row indices of any shape, integers.
        weight: Table (V, d).
        padding_idx: Row that gets no gradient; negative ones count from the end.

    Returns:
        Rows (..., d).

    Raises:
        ConfigurationError: The table is not a matrix, or an index is not a row of it.
    """
    check_operands("embedding", {"weight": weight})
    check_tensor("embedding", "input", input)
    if weight.dim() != 2 or input.is_floating_point() or input.is_complex() or input.dtype == torch.bool:
        raise ConfigurationError(
            f"embedding needs integer indices and a table (V, d), not {input.dtype} and shape {tuple(weight.shape)}."
        )
    rows, columns = weight.shape
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise ConfigurationError(f"padding_idx is {padding_idx}, but the table has {rows} rows.")
    if not fused_applies("embedding", weight):
        return run_plain("embedding", lambda: embedding_ref(input, weight, padding_idx), {"weight": weight})
    tokens = input.reshape(-1).long()
    grad_tokens = tokens if padding_idx is None else tokens.masked_fill(tokens == padding_idx % rows, _NOWHERE)
    output: Tensor = _Gather.apply(weight, tokens, grad_tokens, False)
    return output.view(*input.shape, columns)
