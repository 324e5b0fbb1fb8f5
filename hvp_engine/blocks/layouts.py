"""Where outputs, inputs, queries, keys and values lie in the tensors of known layers.

A slice of a projection is what its name says only where the layout is known. A linear layer keeps (outputs, inputs),
the ``Conv1D`` of GPT-2's family (inputs, outputs). Projections fused into one tensor keep queries, keys and values
stacked (all queries first), or per head (queries, keys and values of head 0 first): both have the same shape, so only
the class that reads them tells which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from hvp_engine.errors import BlockError

Index: TypeAlias = "None | slice | tuple[slice, ...] | Tensor"
Layout = Literal["stacked", "per_head"]

PROJECTIONS = ("q", "k", "v")

# By the library, the class that reads the projection, and its name there.
_KNOWN: dict[tuple[str, str, str], Layout] = {
    ("transformers", "GPT2Attention", "c_attn"): "stacked",
    ("transformers", "DecisionTransformerGPT2Attention", "c_attn"): "stacked",
    ("transformers", "ImageGPTAttention", "c_attn"): "stacked",
    ("transformers", "Attention", "c_attn"): "stacked",  # of GPT-1, the only class of that name with a c_attn
    ("transformers", "MptAttention", "Wqkv"): "stacked",
    ("transformers", "Phi3Attention", "qkv_proj"): "stacked",
    ("transformers", "BloomAttention", "query_key_value"): "per_head",
    ("transformers", "GPTNeoXAttention", "query_key_value"): "per_head",
    ("transformers", "GPTNeoXJapaneseAttention", "query_key_value"): "per_head",
    ("transformers", "PersimmonAttention", "query_key_value"): "per_head",
    ("timm", "Attention", "qkv"): "stacked",
    ("timm", "WindowAttention", "qkv"): "stacked",
    ("torch", "MultiheadAttention", "in_proj_weight"): "stacked",
    ("torch", "MultiheadAttention", "in_proj_bias"): "stacked",
}
_FUSED_NAMES = ("qkv", "c_attn", "query_key_value", "in_proj", "kv_proj", "key_value")
_ROLES = {
    "q": "q",
    "wq": "q",
    "query": "q",
    "queries": "q",
    "k": "k",
    "wk": "k",
    "key": "k",
    "keys": "k",
    "v": "v",
    "wv": "v",
    "value": "v",
    "values": "v",
}
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_head", "n_heads")


@dataclass(frozen=True)
class Fused:
    """A projection to queries, keys and values at once.

    Attributes:
        layout: How they lie; None where the class that reads them is not known.
        sizes: Outputs of queries, keys and values.
        heads: Heads of queries, keys and values; None where not known.
    """

    layout: Layout | None
    sizes: tuple[int, int, int]
    heads: tuple[int, int, int] | None


@dataclass(frozen=True)
class Owner:
    """The layer that owns a parameter, and the module that uses the layer.

    Attributes:
        layer: The module that holds the parameter.
        user: The module above; the layer itself where it is the model.
        name: The layer's name in the module above.
        leaf: The parameter's name in the layer.
    """

    layer: nn.Module
    user: nn.Module
    name: str
    leaf: str


def owner_of(model: nn.Module, parameter: str) -> Owner:
    """Find the layer that owns a parameter."""
    path, _, leaf = parameter.rpartition(".")
    above, _, name = path.rpartition(".")
    return Owner(model.get_submodule(path), model.get_submodule(above), name, leaf)


def output_dimension(model: nn.Module, parameter: str) -> int:
    """Return the dimension of a parameter along which the layer's outputs lie."""
    owner = owner_of(model, parameter)
    return 1 if _is_transposed(owner.layer) and owner.leaf == "weight" else 0


def fused_projection(model: nn.Module, parameter: str) -> Fused | None:
    """Say how queries, keys and values lie in a parameter; None where nothing says that it holds all of them."""
    owner = owner_of(model, parameter)
    outputs = _size(model, parameter)
    layout = _known_layout(owner)
    heads = head_counts(owner.user)
    if layout is None:
        named = f"{owner.name}.{owner.leaf}".lower()
        if not any(name in named for name in _FUSED_NAMES):
            return None
        return Fused(None, _thirds(outputs), heads)
    sizes = _thirds(outputs)
    if heads is not None and outputs % sum(heads) == 0:
        sizes = (outputs // sum(heads) * heads[0], outputs // sum(heads) * heads[1], outputs // sum(heads) * heads[2])
    if type(owner.user).__name__ == "GPT2Attention" and getattr(owner.user, "is_cross_attention", False):
        return Fused(None, sizes, heads)  # keys and values alone, of the encoder's states
    return Fused(layout, sizes, heads)


def head_counts(module: nn.Module) -> tuple[int, int, int] | None:
    """Return the heads of queries, keys and values of an attention module; None where it does not say."""
    config = getattr(module, "config", None)
    count = _first_int(module, _HEAD_COUNTS) or _first_int(config, _HEAD_COUNTS)
    if count is None:
        return None
    shared = _first_int(module, ("num_key_value_heads",)) or _first_int(config, ("num_key_value_heads",)) or count
    return count, shared, shared


def pieces_of(fused: Fused, layout: Layout, heads: tuple[int, int, int] | None) -> Iterator[tuple[str, list[slice]]]:
    """Yield, for queries, keys and values, the slices of the outputs that hold them, head by head where heads count.

    Args:
        fused: Their sizes.
        layout: How they lie.
        heads: Heads of each; None takes each as a whole, which only stacked ones have.
    """
    if layout == "per_head":
        if heads is None:
            raise BlockError("Heads are needed to find what lies per head; pass num_heads.")
        width = fused.sizes[0] // heads[0]
        for number, name in enumerate(PROJECTIONS):
            starts = [(3 * head + number) * width for head in range(heads[0])]
            yield name, [slice(start, start + width) for start in starts]
        return
    start = 0
    for name, size, count in zip(PROJECTIONS, fused.sizes, heads or (1, 1, 1), strict=True):
        width = size // count
        yield name, [slice(start + head * width, start + (head + 1) * width) for head in range(count)]
        start += size


def projection_of(name: str) -> str | None:
    """Return which of :data:`PROJECTIONS` a name speaks of, ``"q_proj"`` or ``"0.wq"`` say; None where of none."""
    words = name.lower().replace("/", " ").replace(".", " ").replace("_", " ").replace("-", " ").split()
    return next((_ROLES[word] for word in words if word in _ROLES), None)


def refuse_mixed(model: nn.Module, parameter: str, index: Index, block: str) -> None:
    """Refuse a block that is named after queries, keys or values and holds parts of all of them.

    Args:
        model: The model.
        parameter: Canonical name.
        index: What the block takes of it.
        block: The block's name.

    Raises:
        BlockError: It does.
    """
    role = projection_of(block)
    if role is None or index is None:
        return
    fused = fused_projection(model, parameter)
    if fused is None or fused.layout is None:
        return
    outputs = output_dimension(model, parameter)
    taken = _taken(index, outputs, _size(model, parameter))
    heads = fused.heads if fused.layout == "per_head" else None
    if fused.layout == "per_head" and heads is None:
        return
    mine = torch.zeros(_size(model, parameter), dtype=torch.bool, device="cpu")
    for piece in dict(pieces_of(fused, fused.layout, heads))[role]:
        mine[piece] = True
    if bool((taken & ~mine).any()):
        what = type(owner_of(model, parameter).layer).__name__
        raise BlockError(
            f"Block {block!r} is named after one of queries, keys and values, and its slice of {parameter!r} holds "
            f"parts of others: this {what} keeps its outputs along dimension {outputs}, "
            f"{fused.layout.replace('_', ' ')}. "
            f"Let hvp_engine.blocks.projections(model, {parameter!r}) cut it, or give the block another name."
        )


def _taken(index: Index, dimension: int, size: int) -> Tensor:
    """Mark the outputs that an index takes anything of."""
    taken = torch.zeros(size, dtype=torch.bool, device="cpu")
    along = index if isinstance(index, tuple) else (index,)
    if dimension >= len(along):  # nothing is left out along the outputs
        taken[:] = True
    else:
        piece = along[dimension]
        taken[piece.cpu() if isinstance(piece, Tensor) else piece] = True
    return taken


def _known_layout(owner: Owner) -> Layout | None:
    for reader, name in ((owner.user, owner.name), (owner.layer, owner.leaf)):
        library = type(reader).__module__.partition(".")[0]
        layout = _KNOWN.get((library, type(reader).__name__, name))
        if layout is not None:
            return layout
    if _is_transposed(owner.layer) and owner.name == "c_attn":  # a class of the user's after GPT-2
        return "stacked"
    return None


def _is_transposed(layer: nn.Module) -> bool:
    """Say whether a layer keeps (inputs, outputs), as the Conv1D of transformers does."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def _size(model: nn.Module, parameter: str) -> int:
    shape = model.get_parameter(parameter).shape
    dimension = output_dimension(model, parameter)
    return shape[dimension] if dimension < len(shape) else 1


def _thirds(outputs: int) -> tuple[int, int, int]:
    return outputs // 3, outputs // 3, outputs // 3


def _first_int(owner: object, names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := getattr(owner, name, None), int)), None)
