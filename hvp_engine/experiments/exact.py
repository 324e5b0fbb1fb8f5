"""Whole matrices of small nets: where blocks stand in them, what a random partition would hold, how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from torch import nn

from hvp_engine.blocks import Block

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_DECADES = 5.0
_BORDERS = 40  # more of them would cover what they divide


def positions(model: nn.Module, names: Sequence[str], blocks: Sequence[Block]) -> list[IntArray]:
    """Say where the entries of blocks stand in the vector of some parameters, one after another.

    Args:
        model: The model.
        names: The parameters, in the order of the vector.
        blocks: Pieces of these.

    Returns:
        Positions (numel,) of each block.
    """
    numbered, start = {}, 0
    for name in names:
        parameter = model.get_parameter(name)
        numbered[name] = torch.arange(start, start + parameter.numel(), device="cpu").view(parameter.shape)
        start += parameter.numel()
    return [
        torch.cat([(numbered[name] if index is None else numbered[name][index]).flatten() for name, index in b.parts])
        .numpy()
        .astype(np.int64)
        for b in blocks
    ]


def random_energy_share(matrix: FloatArray, groups: Sequence[IntArray]) -> float:
    """Compute what random partitions with the sizes of a given one hold of a matrix's energy, in the mean.

    A diagonal entry is always inside; any other one is with the chance that two of n entries meet in a group.

    Args:
        matrix: Symmetric, (n, n).
        groups: A partition of the n entries.
    """
    n, total = len(matrix), float(np.sum(matrix**2))
    diagonal = float(np.sum(np.diag(matrix) ** 2))
    together = sum(len(group) * (len(group) - 1) for group in groups) / (n * (n - 1))
    return (diagonal + together * (total - diagonal)) / total


def draw_magnitudes(axes: Axes, matrix: FloatArray, groups: Sequence[IntArray]) -> AxesImage:
    """Draw log10 of the magnitudes of a matrix's entries, five decades from the largest down, and its groups' borders.

    Args:
        axes: Where.
        matrix: (n, n).
        groups: Runs of entries that follow each other; their borders are left out where they are many.

    Returns:
        The image, for ``figure.colorbar``.
    """
    magnitudes = np.abs(matrix)
    top = float(np.log10(magnitudes.max()))
    values = np.log10(np.maximum(magnitudes, 10.0 ** (top - _DECADES)))
    image = axes.imshow(values, cmap="cividis", vmin=top - _DECADES, vmax=top, interpolation="nearest")
    if len(groups) <= _BORDERS:
        for group in groups[1:]:
            axes.axhline(group[0] - 0.5, color="white", linewidth=0.3)
            axes.axvline(group[0] - 0.5, color="white", linewidth=0.3)
    axes.set_xticks([])
    axes.set_yticks([])
    return image
