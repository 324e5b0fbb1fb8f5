"""The layers of a Transformer, and which weight of a layer does what: told by types, shapes and positions.

Libraries rename modules from one major version to the next, so nothing here knows a path. A layer is a member of the
list of like modules that each have one attention. In it the weights are, in the order in which they are registered:
queries, keys and values, which alone are told by a word in their names (``query``, ``q_proj``, ``wq``) or are fused
into one; after them the output projection, which maps back from the heads to the stream; and the MLP, two matrices, or
three where one is a gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from hvp_engine.blocks.layouts import (
    PROJECTIONS,
    fused_projection,
    output_dimension,
    owner_of,
    projection_of,
)
from hvp_engine.errors import BlockError


class UnknownLayoutError(BlockError):
    """A model is laid out in a way that is not known here; its message is the reason alone, one sentence."""


@dataclass(frozen=True)
class Layer:
    """The weights of a layer, by the names of their parameters.

    Attributes:
        attention: Queries, keys and values; or the one that holds all of them.
        output: The output projection of the attention.
        mlp: The first and the last matrix of the MLP; with a gate that first, ``(gate, up, down)``.
    """

    attention: tuple[str, ...]
    output: str
    mlp: tuple[str, ...]


@dataclass(frozen=True)
class Transformer:
    """A model's layers, and what is registered before and after them.

    Attributes:
        layers: In their order.
        before: Names of the modules before the layers.
        after: Names of the modules after the layers.
    """

    layers: tuple[Layer, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


def find_transformer(model: nn.Module) -> Transformer | None:
    """Find the layers of a Transformer; None where nothing in the model has queries, keys and values.

    Raises:
        UnknownLayoutError: It has attention, and not as one list of like layers whose weights are all known.
    """
    attended = [name for name in matrices(model) if _is_query(model, name)]
    if not attended:
        return None
    modules = [name for name, _ in model.named_modules()]
    stacks = [name for name in modules if name and _is_stack(model, name, attended)]
    if len(stacks) != 1:
        raise UnknownLayoutError(f"It has {len(stacks)} lists of like layers with one attention each ({_few(stacks)}).")
    (stack,) = stacks
    outside = [name for name in attended if not name.startswith(f"{stack}.")]
    if outside:
        raise UnknownLayoutError(f"{outside[0]!r} attends outside the list of layers {stack!r}.")
    layers = tuple(_layer(model, f"{stack}.{child}") for child, _ in model.get_submodule(stack).named_children())
    first = modules.index(stack)
    inside = [name for name in modules if name == stack or name.startswith(f"{stack}.")]
    return Transformer(layers, tuple(modules[:first]), tuple(modules[first + len(inside) :]))


def matrices(model: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the names of the weights with two dimensions or more in registration order, tables of embeddings left out.

    Args:
        model: The model.
        prefix: Name of the module to look in; empty looks everywhere.
    """
    for path, module in model.get_submodule(prefix).named_modules(prefix=prefix):
        if not isinstance(module, nn.Embedding):
            for leaf, parameter in module.named_parameters(recurse=False):
                if leaf.endswith("weight") and parameter.dim() > 1:
                    yield f"{path}.{leaf}" if path else leaf


def _layer(model: nn.Module, prefix: str) -> Layer:
    """Tell what the weights of one layer do."""
    names = list(matrices(model, prefix))
    attention = _attention(model, prefix, names)
    last = max(names.index(name) for name in attention)
    rest = [name for name in names if name not in attention]
    stream, width = _inputs(model, attention[0]), _query_width(model, attention[0])
    output = next(iter(names[last + 1 :]), None)
    if output is None or (_inputs(model, output), _outputs(model, output)) != (width, stream):
        raise UnknownLayoutError(f"No output projection from {width} to {stream} follows {attention[-1]!r}.")
    mlp = [name for name in rest if name != output]
    fits = [_inputs(model, name) == stream for name in mlp[:-1]] + [
        _outputs(model, name) == stream for name in mlp[-1:]
    ]
    if len(mlp) not in (2, 3) or not all(fits):
        raise UnknownLayoutError(
            f"Beside its attention {prefix!r} has no MLP of two matrices or of three, but: {_few(mlp)}."
        )
    if len(mlp) == 3:
        first, down = sorted(mlp[:2], key=lambda name: "gate" not in owner_of(model, name).name), mlp[2]
        if ["gate" in owner_of(model, name).name for name in first] != [True, False]:
            raise UnknownLayoutError(f"Of {_few(first)} not one is called a gate.")
        mlp = [*first, down]
    return Layer(attention, output, tuple(mlp))


def _attention(model: nn.Module, prefix: str, names: list[str]) -> tuple[str, ...]:
    """Find queries, keys and values of a layer, or what holds all of them."""
    fused = [name for name in names if fused_projection(model, name) is not None]
    if fused:
        return (fused[0],)
    found = tuple(name for role in PROJECTIONS for name in names if projection_of(_own_name(model, name)) == role)
    if len(found) != len(PROJECTIONS):
        raise UnknownLayoutError(
            f"{prefix!r} has not one weight each for queries, keys and values, but: {_few(found)}."
        )
    return found


def _is_stack(model: nn.Module, name: str, attended: list[str]) -> bool:
    """Say whether a module is a list of like modules that have one attention each."""
    module = model.get_submodule(name)
    if not isinstance(module, (nn.ModuleList, nn.Sequential)) or not len(module):
        return False
    inside = [sum(one.startswith(f"{name}.{child}.") for one in attended) for child, _ in module.named_children()]
    return len({type(child) for child in module}) == 1 and set(inside) == {1}


def _is_query(model: nn.Module, name: str) -> bool:
    return projection_of(_own_name(model, name)) == "q" or fused_projection(model, name) is not None


def _own_name(model: nn.Module, name: str) -> str:
    """Return what a weight is called: its layer's name, or its own where a layer has several."""
    owner = owner_of(model, name)
    return owner.name if owner.leaf == "weight" else owner.leaf


def _query_width(model: nn.Module, name: str) -> int:
    fused = fused_projection(model, name)
    return _outputs(model, name) if fused is None else fused.sizes[0]


def _outputs(model: nn.Module, name: str) -> int:
    return model.get_parameter(name).shape[output_dimension(model, name)]


def _inputs(model: nn.Module, name: str) -> int:
    return model.get_parameter(name).shape[1 - output_dimension(model, name)]


def _few(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:4])) + (", ..." if len(names) > 4 else "") or "none"
