"""The forms in which vectors of a block are given: flat, as columns, or a tensor per parameter; products come back so.

A tensor per parameter has the parameter's shape also where the block holds a slice of it: what is outside the slice
does not enter a product, and is zero in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvp_engine.blocks import BlockPart, ResolvedBlock
from hvp_engine.blocks.partition import Names, near_names
from hvp_engine.errors import BlockError, ConfigurationError
from hvp_engine.operators.vectors import dense_tensor
from hvp_engine.system.formatting import first_names


@dataclass(frozen=True)
class Form:
    """Vectors of a block as products take them, and how products go back into the form that these were given in.

    Attributes:
        rows: (k, numel).
        restored: Gives (k, numel) products the form of the vectors.
    """

    rows: Tensor
    restored: Callable[[Tensor], Any]


def form_of(model: nn.Module, block: ResolvedBlock, vectors: Any) -> Form:
    """Recognise the form of one block's vectors.

    Args:
        model: The model, which knows shapes and names.
        block: The block.
        vectors: A tensor or NumPy array of shape (numel,), (numel, k) with vectors as columns, or shaped like the
            block's only tensor; or a mapping of parameter names to tensors or arrays shaped like the parameters.

    Raises:
        BlockError: A name is none of the block's parameters, or one is missing.
        ConfigurationError: They have none of these forms.
    """
    if isinstance(vectors, Mapping):
        return Form(flatten(model, block, vectors)[None], lambda products: _named(model, block, vectors, products[0]))
    what, n = f"The tensor of vectors of block {block.name!r}", block.numel
    tensor = dense_tensor(vectors, what)
    if tensor.shape == (n,):
        return Form(tensor[None], lambda products: _like(vectors, products[0]))
    if tensor.dim() == 2 and tensor.shape[0] == n:
        return Form(tensor.t().contiguous(), lambda products: _like(vectors, products.t().contiguous()))
    if len(block.parts) == 1 and tensor.shape == (shape := block.parts[0].shape):
        return Form(tensor.reshape(1, n), lambda products: _like(vectors, products.reshape(shape)))
    in_rows = tensor.dim() == 2 and tensor.shape[1] == n
    raise ConfigurationError(
        f"{what} must have shape ({n},), or ({n}, k) with vectors as columns, got {tuple(tensor.shape)}."
        + (" Vectors in rows are what matmat takes; here, transpose them." if in_rows else "")
        + f" A mapping of parameter names ({first_names(_names(block))}) to tensors of their shapes will do, too."
    )


def flatten(model: nn.Module, block: ResolvedBlock, tensors: Mapping[str, Any]) -> Tensor:
    """Gather tensors shaped like a block's parameters into its flat vector (numel,); arguments as for `form_of`.

    Raises:
        BlockError: A name is none of the block's parameters, or one is missing or there twice.
        ConfigurationError: A tensor has another shape than its parameter, or they are on different devices.
    """
    if not isinstance(tensors, Mapping):
        raise ConfigurationError(
            f"A vector of block {block.name!r} to be flattened must be a mapping of parameter names to tensors, not "
            f"{type(tensors).__name__}."
        )
    given, parameters = _by_own_name(model, block, tensors), dict(model.named_parameters())
    pieces: list[Tensor] = []
    for part in block.parts:
        name, wanted = given[part.parameter], parameters[part.parameter].shape
        what = f"The tensor of parameter {name!r}"
        tensor = dense_tensor(tensors[name], what)
        if tensor.shape != wanted:
            raise ConfigurationError(
                f"{what} must have the parameter's shape {tuple(wanted)}, got {tuple(tensor.shape)}."
            )
        pieces.append(tensor[_index(part, tensor)].reshape(-1))
    places = sorted({str(piece.device) for piece in pieces})
    if len(places) > 1:
        raise ConfigurationError(
            f"The tensors of block {block.name!r} are on {' and '.join(places)}; move them to one."
        )
    return torch.cat(pieces)


def unflatten(model: nn.Module, block: ResolvedBlock, flat: Any) -> dict[str, Tensor]:
    """Spread a block's flat vector (numel,) over new tensors shaped like its parameters, by their own names.

    Raises:
        ConfigurationError: It is no dense tensor of that shape.
    """
    what = f"The flat vector of block {block.name!r}"
    vector = dense_tensor(flat, what)
    if vector.shape != (block.numel,):
        raise ConfigurationError(f"{what} must have shape ({block.numel},), got {tuple(vector.shape)}.")
    parameters = dict(model.named_parameters())
    tensors = {name: vector.new_zeros(parameters[name].shape) for name in _names(block)}
    for part, piece in zip(block.parts, block.split(vector), strict=True):
        tensors[part.parameter][_index(part, vector)] = piece
    return tensors


def transposed(vectors: Any) -> Any:
    """Return a matrix's transpose, and anything else as it is."""
    if isinstance(vectors, Tensor):
        vectors = dense_tensor(vectors, "The tensor of vectors")
    matrix = isinstance(vectors, (Tensor, np.ndarray)) and vectors.ndim == 2
    return vectors.T if matrix else vectors


def _named(model: nn.Module, block: ResolvedBlock, like: Mapping[str, Any], product: Tensor) -> dict[str, Any]:
    """Spread a product over the names, and the kinds of arrays, that the vector was given in."""
    tensors = unflatten(model, block, product)
    return {given: _like(like[given], tensors[own]) for own, given in _by_own_name(model, block, like).items()}


def _by_own_name(model: nn.Module, block: ResolvedBlock, tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return by which of its names each parameter of a block was given, in the order given.

    Raises:
        BlockError: A name is none of the block's parameters, or one is missing or there twice.
    """
    own_name, wanted = Names(model).canonical, _names(block)
    known = [name for name, own in own_name.items() if own in wanted]
    given: dict[str, str] = {}
    for name in tensors:
        own = own_name.get(name, "")
        if own not in wanted:
            raise BlockError(
                f"Block {block.name!r} has no parameter named {name!r}; it has {first_names(known)}."
                f"{near_names(str(name), known)}"
            )
        if own in given:
            raise BlockError(f"The names {given[own]!r} and {name!r} are those of one parameter, tied; give one.")
        given[own] = name
    missing = [own for own in wanted if own not in given]
    if missing:
        raise BlockError(
            f"Block {block.name!r} has parameters of which no tensor was given: {first_names(missing)}; give zeros "
            "where the vector is to be zero."
        )
    return given


def _names(block: ResolvedBlock) -> list[str]:
    return list(dict.fromkeys(part.parameter for part in block.parts))


def _index(part: BlockPart, tensor: Tensor) -> Any:
    """Return what a part takes of its parameter, for a tensor of the parameter's shape on any device."""
    if part.index is None:
        return ...
    return part.index.to(tensor.device) if isinstance(part.index, Tensor) else part.index


def _like(given: Any, products: Tensor) -> Any:
    """Return an array for an array."""
    return products.cpu().numpy() if isinstance(given, np.ndarray) else products
