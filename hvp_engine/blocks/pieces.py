"""Helpers that cut parameters into blocks: per head, per row, into queries, keys and values."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hvp_engine.blocks.layouts import (
    PROJECTIONS,
    Fused,
    Index,
    Layout,
    fused_projection,
    head_counts,
    output_dimension,
    owner_of,
    pieces_of,
)
from hvp_engine.blocks.partition import Block, Names, as_patterns
from hvp_engine.errors import BlockError

_KEYS_AND_VALUES = ("k_proj", "v_proj", "wk", "wv", "key", "value")


def heads(
    model: nn.Module, names: str | Sequence[str], num_heads: int, *, dim: int = 0, layout: Layout | None = None
) -> list[Block]:
    """Make one block per attention head of each named projection.

    Args:
        model: The model.
        names: Parameter names or glob patterns, for instance ``"*.attn.wq.weight"``.
        num_heads: Heads that share the tensor; must divide its size.
        dim: 0 where the head's entries are the layer's outputs (query, key, value), 1 where they are its inputs (output
            projection). As in a linear layer's weight; in a ``Conv1D`` of transformers, which keeps its weight the
            other way round, the same numbers mean the same.
        layout: As for :func:`projections`, for projections fused into one tensor.

    Returns:
        Blocks named ``"<parameter>/head<i>"``; of a fused projection ``"<parameter>/q/head<i>"`` and so on.

    Raises:
        BlockError: A name is unknown, the size is not divisible by ``num_heads``, the module that uses the projection
            has another number of heads, or a fused projection's layout is not known.
    """
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise BlockError(f"num_heads={num_heads!r} must be a whole number.")
    if dim not in (0, 1):
        raise BlockError(f"dim={dim!r} must be 0 (the layer's outputs) or 1 (its inputs).")
    blocks: list[Block] = []
    known = Names(model)
    for name in known.match(as_patterns(names, "names"), "head"):
        fused = fused_projection(model, name) if dim == 0 else None
        if fused is not None:
            chosen, counts = _layout(name, fused, layout, num_heads)
            for role, pieces in pieces_of(fused, chosen, counts):
                for i, piece in enumerate(pieces):
                    blocks.append(Block(f"{name}/{role}/head{i}", [(name, _along(model, name, piece))]))
            continue
        _check_heads(model, name, num_heads)
        dimension = abs(output_dimension(model, name) - dim)
        blocks += _chunks(known, name, num_heads, dimension, "head")
    return blocks


def rows(model: nn.Module, names: str | Sequence[str]) -> list[Block]:
    """Make one block per output of each named layer: per row of a linear or convolution weight.

    Args:
        model: The model.
        names: Parameter names or glob patterns.

    Returns:
        Blocks named ``"<parameter>/row<i>"``; of a ``Conv1D`` of transformers, whose outputs are columns, these.

    Raises:
        BlockError: A name is unknown or frozen.
    """
    known = Names(model)
    blocks: list[Block] = []
    for name in known.match(as_patterns(names, "names"), "row"):
        blocks += _chunks(known, name, None, output_dimension(model, name), "row")
    return blocks


def projections(
    model: nn.Module, names: str | Sequence[str], num_heads: int | None = None, *, layout: Layout | None = None
) -> list[Block]:
    """Make one block each of the queries, keys and values of projections that are fused into one tensor.

    Args:
        model: The model.
        names: Parameter names or glob patterns, for instance ``"*.attn.c_attn.weight"``.
        num_heads: Heads, where the module that uses the projection does not say.
        layout: ``"stacked"`` (a third each: all queries, all keys, all values) or ``"per_head"`` (queries, keys and
            values of one head after the other). Needed where the module that uses the projection is of a class that is
            not known here: both have the same shape, and nothing else would tell them apart.

    Returns:
        Blocks named ``"<parameter>/q"``, ``"/k"`` and ``"/v"``.

    Raises:
        BlockError: A name is unknown, nothing says that the tensor is fused, or how, or it cannot be cut so.
    """
    known = Names(model)
    blocks: list[Block] = []
    for name in known.match(as_patterns(names, "names"), "projection"):
        fused = fused_projection(model, name)
        if fused is None:
            if layout is None:
                raise BlockError(
                    f"Nothing says that {name!r} holds queries, keys and values in one; if it does, pass "
                    'layout="stacked" or layout="per_head".'
                )
            size = known.parameters[name].shape[output_dimension(model, name)]
            fused = Fused(None, (size // 3,) * 3, head_counts(owner_of(model, name).user))
        chosen, counts = _layout(name, fused, layout, num_heads)
        for role, pieces in pieces_of(fused, chosen, counts if chosen == "per_head" else None):
            blocks.append(Block(f"{name}/{role}", [(name, _along(model, name, piece)) for piece in pieces]))
    return blocks


def _layout(
    name: str, fused: Fused, asked: Layout | None, num_heads: int | None
) -> tuple[Layout, tuple[int, int, int] | None]:
    """Settle how a fused projection is cut: what its module says, or else what the caller says.

    Raises:
        BlockError: Nobody says it, both say different things, or the sizes do not fit.
    """
    if asked not in (None, "stacked", "per_head"):
        raise BlockError(f'layout={asked!r} must be "stacked" or "per_head".')
    layout = fused.layout or asked
    if layout is None:
        raise BlockError(
            f"{name!r} seems to hold queries, keys and values in one, and its module is of no known class, so that "
            'their order is not certain: pass layout="stacked" (all queries, all keys, all values, a third each) or '
            'layout="per_head" (those of one head after the other), or cut it with hvp_engine.Block.'
        )
    if asked is not None and asked != layout:
        raise BlockError(f"{name!r} is laid out {layout!r} by its module, not {asked!r}; leave layout= out.")
    counts = fused.heads
    if num_heads is not None:
        if counts is not None and counts[0] != num_heads:
            raise BlockError(f"num_heads={num_heads}, but the module of {name!r} has {counts[0]} heads.")
        counts = counts or (num_heads, num_heads, num_heads)
    if layout == "per_head" and counts is None:
        raise BlockError(f"{name!r} keeps queries, keys and values per head: pass num_heads.")
    total = sum(fused.sizes)
    for size, count in zip(fused.sizes, counts or (1, 1, 1), strict=True):
        if count < 1 or size % count or (fused.layout is None and total != 3 * size):
            raise BlockError(f"{name!r} does not divide into {', '.join(PROJECTIONS)} of {count} equal heads each.")
    if layout == "per_head" and counts is not None and len(set(counts)) > 1:
        raise BlockError(f"{name!r} shares keys and values between heads, per head: cut it with hvp_engine.Block.")
    return layout, counts


def _along(model: nn.Module, name: str, piece: slice) -> Index:
    """Index a piece of a layer's outputs."""
    return piece if output_dimension(model, name) == 0 else (slice(None), piece)


def _check_heads(model: nn.Module, name: str, num_heads: int) -> None:
    """Refuse a number of heads that the module which uses the projection contradicts."""
    owner = owner_of(model, name)
    counts = head_counts(owner.user)
    if counts is None:
        return
    expected = counts[1] if owner.name in _KEYS_AND_VALUES else counts[0]
    if num_heads != expected:
        raise BlockError(f"num_heads={num_heads}, but the module of {name!r} has {expected} heads there.")


def _chunks(known: Names, name: str, count: int | None, dim: int, label: str) -> list[Block]:
    """Cut a parameter into equal pieces along a dimension, one block each; ``None`` cuts it into single entries."""
    shape = known.parameters[name].shape
    if dim >= len(shape):
        raise BlockError(f"Parameter {name!r} has shape {tuple(shape)}, so it has no dimension {dim} to cut.")
    pieces = shape[dim] if count is None else count
    if pieces < 1 or shape[dim] % pieces:
        raise BlockError(f"Parameter {name!r} has size {shape[dim]} along dimension {dim}: not {pieces} equal parts.")
    step = shape[dim] // pieces
    leading = (slice(None),) * dim
    return [Block(f"{name}/{label}{i}", [(name, (*leading, slice(i * step, (i + 1) * step)))]) for i in range(pieces)]
