"""Named parts of the parameters, checked against a model, and how flat vectors map onto them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hvp_engine.blocks.layouts import Index, refuse_mixed
from hvp_engine.errors import BlockError

BlockSpec: TypeAlias = "None | str | Block | Sequence[str | Block] | Mapping[str, str | Sequence[str] | Block]"


@dataclass(frozen=True, eq=False)
class Block:
    """A named part of the parameters.

    Attributes:
        name: Key of the block in results.
        parts: ``(parameter_name, index)`` pairs. ``index`` is ``None`` (the whole tensor), a slice or a tuple of slices
            over the leading dimensions, or a 1-d integer tensor that picks entries of the first dimension. Any of the
            names of a tied parameter will do. The block's vector is the concatenation of the parts, each flattened in
            row-major order.

    Example:
        The query rows of a fused projection: ``Block("q", [("attn.qkv.weight", slice(0, 768))])``.
    """

    name: str
    parts: Sequence[tuple[str, Index]]


@dataclass(frozen=True)
class BlockPart:
    """One tensor, or one indexed piece of a tensor, inside a resolved block."""

    parameter: str
    index: Index
    shape: torch.Size
    numel: int

    def take(self, tensor: Tensor) -> Tensor:
        """Take the piece of a tensor shaped like the parameter."""
        return tensor if self.index is None else tensor[self.index]


@dataclass(frozen=True)
class ResolvedBlock:
    """A block checked against a model: canonical parameter names, shapes, total size."""

    name: str
    parts: tuple[BlockPart, ...]
    numel: int

    def split(self, vectors: Tensor) -> list[Tensor]:
        """View flat vectors (..., numel) as one tensor per part, (..., followed by the part's shape)."""
        pieces = torch.split(vectors, [part.numel for part in self.parts], dim=-1)
        return [
            piece.reshape((*vectors.shape[:-1], *part.shape)) for piece, part in zip(pieces, self.parts, strict=True)
        ]


@dataclass(frozen=True)
class Partition:
    """All blocks of one job.

    Attributes:
        blocks: The resolved blocks by name, in the order asked for.
        parameters: Canonical names of every parameter that some block touches.
        notes: What was decided about tied and frozen parameters, in plain words.
    """

    blocks: dict[str, ResolvedBlock]
    parameters: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def numel(self) -> dict[str, int]:
        """Length of each block's vectors."""
        return {name: block.numel for name, block in self.blocks.items()}


class Names:
    """All names of a model's parameters, with tied names leading to one canonical name."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = dict(model.named_parameters())
        canonical = {id(parameter): name for name, parameter in self.parameters.items()}
        self.canonical = {
            name: canonical[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)
        }
        self.notes: dict[str, None] = {}
        if not self.parameters:
            raise BlockError("The model has no parameters, so it has no Hessian.")
        lazy = [name for name, parameter in self.parameters.items() if is_lazy(parameter)]
        if lazy:
            raise BlockError(f"Parameter {lazy[0]!r} is lazy and has no shape yet; run the model on a batch first.")

    def trainable(self) -> list[str]:
        """List the names of the parameters that are trained; the others are noted as left out."""
        names = [name for name, parameter in self.parameters.items() if parameter.requires_grad and parameter.numel()]
        if not names:
            raise BlockError(
                "No parameter of the model is trainable; set requires_grad=True on the parameters to study."
            )
        self.note_frozen({name for name, parameter in self.parameters.items() if not parameter.requires_grad})
        return names

    def note_frozen(self, names: set[str]) -> None:
        """Note that parameters were left out."""
        if names:
            shown = ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
            self.notes[f"{len(names)} frozen parameter(s) left out: {shown}"] = None

    def note_ties(self, used: Iterable[str]) -> None:
        """Note which of the parameters used have other names, too."""
        chosen = set(used)
        for alias, name in self.canonical.items():
            if alias != name and name in chosen:
                self.notes[f"{alias} is tied to {name}: one parameter, counted once"] = None

    def lookup(self, name: str, block: str) -> str:
        """Return the canonical name of one parameter given by any of its names."""
        if name not in self.canonical:
            hint = near_names(name, self.canonical)
            raise BlockError(f"Block {block!r}: the model has no parameter named {name!r}.{hint}")
        canonical = self.canonical[name]
        if not self.parameters[canonical].requires_grad:
            raise BlockError(
                f"Block {block!r}: parameter {name!r} is frozen; set requires_grad=True on it or leave it out."
            )
        return canonical

    def match(self, patterns: Sequence[str], block: str) -> list[str]:
        """List the canonical names of the trainable parameters that match any pattern, in model order."""
        found: set[str] = set()
        frozen: set[str] = set()
        for pattern in patterns:
            hits = {self.canonical[n] for n in fnmatch.filter(self.canonical, pattern)}
            if not hits:
                self.lookup(pattern, block)
            cold = {name for name in hits if not self.parameters[name].requires_grad}
            frozen |= cold
            found |= hits - cold
        if not found:
            raise BlockError(
                f"Block {block!r} has no trainable parameter: all of {sorted(frozen)} are frozen; "
                "set requires_grad=True on them or leave the block out."
            )
        self.note_frozen(frozen)
        return [name for name in self.parameters if name in found]


def resolve(model: nn.Module, blocks: BlockSpec = None) -> Partition:
    """Check a block specification against a model.

    Args:
        model: The model whose parameters are divided.
        blocks: ``None`` or ``"full"`` (all trainable parameters as one block); ``"parameter"`` (one block per tensor);
            ``"module"`` (one per module that owns parameters directly); a list of parameter names and :class:`Block`
            objects (one block each); or a mapping from block name to parameter names or glob patterns, or to a
            :class:`Block`, whose own name does not count then.

    Returns:
        The resolved partition. Blocks may overlap one another, not themselves.

    Raises:
        BlockError: A name is unknown (the message lists near matches), a parameter is frozen, an index is out of range,
            repeated or empty, two blocks share a name, or the specification has none of these forms.
    """
    names = Names(model)
    requested = _expand(model, names, blocks)
    if not requested:
        raise BlockError("The block specification is empty; name at least one block.")
    resolved: dict[str, ResolvedBlock] = {}
    for block in requested:
        if block.name in resolved:
            raise BlockError(f"Two blocks are named {block.name!r}; give each block its own name.")
        resolved[block.name] = _resolve_one(names, block)
    used = dict.fromkeys(part.parameter for block in resolved.values() for part in block.parts)
    ordered = tuple(name for name in names.parameters if name in used)
    names.note_ties(ordered)
    return Partition(resolved, ordered, tuple(names.notes))


def near_names(name: str, known: Iterable[str]) -> str:
    """Ask whether one of the known names was meant that are like a wrong one; empty where none is."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.4)
    return f" Did you mean {', '.join(map(repr, near))}?" if near else ""


def _expand(model: nn.Module, names: Names, blocks: BlockSpec) -> list[Block]:
    """Turn every accepted form of specification into Block objects."""
    if isinstance(blocks, Block):
        return [blocks]
    if blocks is None or (isinstance(blocks, str) and blocks == "full"):
        return [Block("full", [(name, None) for name in names.trainable()])]
    if isinstance(blocks, str):
        if blocks == "parameter":
            return [Block(name, [(name, None)]) for name in names.trainable()]
        if blocks == "module":
            return _per_module(model, names)
        raise BlockError(
            f"blocks={blocks!r} is not one of 'full', 'parameter', 'module'; "
            f"for the single parameter of that name pass a list: blocks=[{blocks!r}]."
        )
    if isinstance(blocks, Mapping):
        return [_named(names, name, wanted) for name, wanted in blocks.items()]
    if not isinstance(blocks, Iterable):
        raise BlockError(
            f"blocks={blocks!r} is no block specification: give None, 'full', 'parameter', 'module', a list of "
            "parameter names or hvp_engine.Block objects, or a mapping of block names to globs."
        )
    expanded = []
    for item in blocks:
        if isinstance(item, Block):
            expanded.append(item)
        elif isinstance(item, str):
            expanded.append(Block(item, [(item, None)]))
        else:
            raise BlockError(
                f"A block must be a parameter name or a hvp_engine.Block, not {type(item).__name__}; if blocks is "
                "meant to be the data, pass it by name: data=..."
            )
    return expanded


def _named(names: Names, name: str, wanted: object) -> Block:
    """Make a block of a mapping's entry: its parameters by name or glob, or a block, whose own name does not count."""
    if isinstance(wanted, Block):
        return Block(name, wanted.parts)
    return Block(name, [(match, None) for match in names.match(as_patterns(wanted, f"Block {name!r}"), name)])


def as_patterns(patterns: object, what: str) -> list[str]:
    """List names or globs given as one string or as several."""
    listed: list[object] = [patterns]
    if isinstance(patterns, Iterable) and not isinstance(patterns, (str, Mapping)):
        listed = list(patterns)
    strange = [pattern for pattern in listed if not isinstance(pattern, str)]
    if strange:
        raise BlockError(
            f"{what} takes parameter names or globs, not {type(strange[0]).__name__}; regular expressions and "
            "functions are none, and a hvp_engine.Block stands alone: blocks=[he.Block(...)], or as a mapping's value."
        )
    if not listed:
        raise BlockError(f"{what} is empty; give it at least one parameter.")
    return [str(pattern) for pattern in listed]


def _per_module(model: nn.Module, names: Names) -> list[Block]:
    """Make one block per module that owns parameters; a tied parameter stays with its first owner."""
    trainable = set(names.trainable())
    owners: dict[str, list[str]] = {}
    for name in names.parameters:
        if name in trainable:
            owners.setdefault(name.rpartition(".")[0], []).append(name)
    return [Block(owner or type(model).__name__, [(name, None) for name in owned]) for owner, owned in owners.items()]


def _is_part(part: object) -> bool:
    return isinstance(part, (tuple, list)) and len(part) == 2 and isinstance(part[0], str)


def _resolve_one(names: Names, block: Block) -> ResolvedBlock:
    if not isinstance(block.name, str) or not block.name:
        raise BlockError(f"The name of a block must be a non-empty string, not {block.name!r}.")
    if any("\ud800" <= character <= "\udfff" for character in block.name):  # seeds and files need its bytes
        raise BlockError(f"The name of a block must be text, and {block.name!r} has half a character; rename it.")
    if not isinstance(block.parts, Iterable) or not all(map(_is_part, given := list(block.parts))):
        raise BlockError(
            f"Block {block.name!r}: parts must be (parameter name, index) pairs; the index None takes the whole "
            f"tensor: Block({block.name!r}, [('weight', None)])."
        )
    parts: list[BlockPart] = []
    for name, index in given:
        canonical = names.lookup(name, block.name)
        parts.append(_resolve_part(names.parameters[canonical], canonical, index, block.name))
        refuse_mixed(names.model, canonical, index, block.name)
    if not parts:
        raise BlockError(f"Block {block.name!r} is empty; give it at least one parameter.")
    _refuse_overlap(names, parts, block.name)
    return ResolvedBlock(block.name, tuple(parts), sum(part.numel for part in parts))


def _resolve_part(parameter: Tensor, name: str, index: Index, block: str) -> BlockPart:
    if parameter.is_complex():
        raise BlockError(
            f"Block {block!r}: parameter {name!r} is complex; a Hessian is that of real numbers: keep real and "
            "imaginary parts as a real parameter (torch.view_as_complex makes it complex inside the model)."
        )
    where = f"Block {block!r}: the index into {name!r} (shape {tuple(parameter.shape)})"
    if isinstance(index, Tensor):
        if index.dtype not in (torch.int32, torch.int64) or index.dim() != 1:
            raise BlockError(f"{where} must be a 1-d integer tensor, got {index.dtype} of {index.dim()} dimensions.")
        size = parameter.shape[0] if parameter.dim() else 0
        if index.numel() and not (-size <= int(index.min()) and int(index.max()) < size):
            raise BlockError(f"{where} reaches outside the {size} entries of the first dimension.")
        index = torch.where(index < 0, index + size, index).to(parameter.device)
    elif index is not None:
        pieces = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(piece, slice) and _has_integer_bounds(piece) for piece in pieces):
            raise BlockError(f"{where} must be None, a slice of integers, a tuple of those or a 1-d integer tensor.")
        if len(pieces) > parameter.dim():
            raise BlockError(f"{where} has {len(pieces)} slices for {parameter.dim()} dimensions.")
        if any(piece.step is not None and piece.step < 1 for piece in pieces):
            raise BlockError(f"{where} has a slice with a step below 1; torch cannot take it.")
    shape = parameter.shape if index is None else parameter.detach()[index].shape
    if shape.numel() == 0:
        raise BlockError(f"{where} selects no entry.")
    return BlockPart(name, index, shape, shape.numel())


def _has_integer_bounds(piece: slice) -> bool:
    """Say whether the bounds and the step of a slice are integers or left out."""
    return all(bound is None or hasattr(bound, "__index__") for bound in (piece.start, piece.stop, piece.step))


def _refuse_overlap(names: Names, parts: list[BlockPart], block: str) -> None:
    """Refuse an entry that stands twice in one block: its Hessian would be singular in a way nobody meant."""
    by_parameter: dict[str, list[BlockPart]] = {}
    for part in parts:
        by_parameter.setdefault(part.parameter, []).append(part)
    for name, shared in by_parameter.items():
        if len(shared) == 1 and not isinstance(shared[0].index, Tensor):
            continue
        parameter = names.parameters[name]
        if all(part.index is not None for part in shared):
            taken = torch.zeros(parameter.shape, dtype=torch.bool, device="cpu")
            for part in shared:
                taken[part.index.cpu() if isinstance(part.index, Tensor) else part.index] = True
            if int(taken.sum()) == sum(part.numel for part in shared):
                continue
        raise BlockError(f"Block {block!r} holds entries of parameter {name!r} more than once; remove the repetition.")
