"""Whole matrices of small nets: where blocks stand in them, what a random partition would hold, how they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from torch import nn

from hvp_engine.blocks import Block, BlockSpec, resolve
from hvp_engine.experiments.paper_plan import PlannedPart, planned_slq
from hvp_engine.problem.objective import Loss

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_DECADES = 5.0
_MOST_BORDERS = 40  # more of them would cover what they divide
_MOST_CELLS = 1500


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


def draw_magnitudes(axes: Axes, matrix: FloatArray, groups: Sequence[IntArray] = ()) -> AxesImage:
    """Draw log10 of the magnitudes of a matrix's entries, five decades from the largest down, and its groups' borders.

    Of a matrix that has more entries than the page has dots the largest of each cell is drawn.

    Args:
        axes: Where.
        matrix: (n, n).
        groups: Runs of entries that follow each other; their borders are left out where they are many.

    Returns:
        The image, for ``figure.colorbar``.
    """
    n = len(matrix)
    cells = np.arange(0, n, -(-n // _MOST_CELLS))
    largest = np.maximum.reduceat(np.maximum.reduceat(np.abs(matrix), cells, axis=0), cells, axis=1).astype(np.float64)
    top = float(np.log10(largest.max()))
    values = np.log10(np.maximum(largest, 10.0 ** (top - _DECADES)))
    image = axes.imshow(
        values, cmap="cividis", vmin=top - _DECADES, vmax=top, interpolation="nearest", extent=(0, n, n, 0)
    )
    if len(groups) <= _MOST_BORDERS:
        for group in groups[1:]:
            axes.axhline(float(group[0]), color="white", linewidth=0.3)
            axes.axvline(float(group[0]), color="white", linewidth=0.3)
    axes.set_xticks([])
    axes.set_yticks([])
    return image


def planned_matrices(
    what: str, model: nn.Module, loss: Loss, blocks: BlockSpec, data: Iterable[Any], *, runs: int = 1, **options: Any
) -> list[PlannedPart]:
    """Plan calls of :func:`hvp_engine.dense`, block by block: as many products as a block has parameters.

    Args:
        what: In words.
        model: On the meta device, or real.
        loss: As for ``dense``, as are the next two.
        blocks: The blocks.
        data: Batches, on the meta device or real.
        runs: How many such calls: stages, seeds.
        options: As for :func:`hvp_engine.experiments.paper_plan.planned_slq`.
    """
    resolved = resolve(model, blocks).blocks
    return [
        planned_slq(
            f"{what}: {name}",
            model,
            loss,
            [Block(name, [(part.parameter, part.index) for part in block.parts])],
            data,
            steps=1,
            probes=block.numel,
            runs=runs,
            **options,
        )
        for name, block in resolved.items()
    ]
