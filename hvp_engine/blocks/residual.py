"""The convolutions of a ResNet by what they do: told by types, shapes and positions, never by names.

A stage is a list of like blocks. A block is basic, two convolutions wider than one pixel, or a bottleneck, one between
two of a single pixel; each takes the channels that the one before it gives. Where the shape changes there is one more
of a single pixel beside them, from the block's inputs to its outputs: the shortcut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn


@dataclass(frozen=True)
class ResidualBlock:
    """Names of a block's weights.

    Attributes:
        convolutions: Two or three, in their order.
        shortcut: The one beside them; None where the inputs are added as they are.
    """

    convolutions: tuple[str, ...]
    shortcut: str | None


@dataclass(frozen=True)
class ResNet:
    """Names of a ResNet's weights.

    Attributes:
        stem: The convolution before all blocks.
        stages: Blocks of each stage.
        head: The linear layer after them; None in a body without one.
    """

    stem: str
    stages: tuple[tuple[ResidualBlock, ...], ...]
    head: str | None


_Named = tuple[str, nn.Conv2d]


def find_resnet(model: nn.Module) -> ResNet | None:
    """Find the parts of a ResNet; None where the model is none."""
    found = {name: blocks for name in _containers(model) if (blocks := _stage(model, name)) is not None}
    stages = {name: blocks for name, blocks in found.items() if not any(_is_inside(other, name) for other in found)}
    if not stages:
        return None
    outside = [name for name, _ in _convolutions(model) if not any(_is_inside(name, stage) for stage in stages)]
    if len(outside) != 1:
        return None
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return ResNet(f"{outside[0]}.weight", tuple(stages.values()), f"{linear[-1]}.weight" if linear else None)


def _stage(model: nn.Module, name: str) -> tuple[ResidualBlock, ...] | None:
    """Read a list of like modules as a stage; None where it is none."""
    container = model.get_submodule(name)
    if len({type(child) for child in container.children()}) != 1:
        return None
    blocks = [_block(child, f"{name}.{key}" if name else key) for key, child in container.named_children()]
    read = tuple(block for block in blocks if block is not None)
    return read if len(read) == len(blocks) else None


def _block(module: nn.Module, name: str) -> ResidualBlock | None:
    """Read a module as a residual block; None where it is none."""
    if any(isinstance(inner, nn.Linear) for inner in module.modules()):
        return None
    convolutions = _convolutions(module, name)
    for one in reversed(convolutions):  # where two could be the shortcut, it is the one that stands last
        rest = [other for other in convolutions if other is not one]
        if _is_single_pixel(one) and _is_path(rest) and _ends([one]) == _ends(rest):
            return ResidualBlock(_weights(rest), f"{one[0]}.weight")
    return ResidualBlock(_weights(convolutions), None) if _is_path(convolutions) else None


def _is_path(convolutions: Sequence[_Named]) -> bool:
    """Say whether convolutions follow one another as in a basic block or in a bottleneck."""
    pixels = [_is_single_pixel(one) for one in convolutions]
    follow = all(one.out_channels == other.in_channels for (_, one), (_, other) in pairwise(convolutions))
    mixing = all(one.groups == 1 or one.groups < one.in_channels for _, one in convolutions)
    return pixels in ([False, False], [True, False, True]) and follow and mixing


def _ends(convolutions: Sequence[_Named]) -> tuple[int, int]:
    return convolutions[0][1].in_channels, convolutions[-1][1].out_channels


def _is_single_pixel(convolution: _Named) -> bool:
    return set(convolution[1].kernel_size) == {1}


def _convolutions(module: nn.Module, prefix: str = "") -> list[_Named]:
    return [(name, one) for name, one in module.named_modules(prefix=prefix) if isinstance(one, nn.Conv2d)]


def _containers(model: nn.Module) -> list[str]:
    modules = model.named_modules()
    return [name for name, module in modules if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module)]


def _is_inside(name: str, container: str) -> bool:
    return name != container and (not container or name.startswith(f"{container}."))


def _weights(convolutions: Sequence[_Named]) -> tuple[str, ...]:
    return tuple(f"{name}.weight" for name, _ in convolutions)
