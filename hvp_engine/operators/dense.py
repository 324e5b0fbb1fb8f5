"""Whole matrices of small blocks, multiplied out column by column."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvp_engine.errors import OutOfMemoryError
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.krylov.companions import BlockMatrix
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.operators.vectors import refuse_nonfinite
from hvp_engine.scheduling.policy import spare
from hvp_engine.scheduling.rounds import largest_matrix, matrix_bytes
from hvp_engine.system.failures import failures_in_words
from hvp_engine.system.formatting import format_bytes, format_count
from hvp_engine.system.progress import ProgressReporter

_SURE = 0.9  # of the room for a smaller block, whose own graph may take a little more than the one that was measured
_TILE = 1024  # rows and columns that are made symmetric at once


class DenseBlocks(dict[str, Tensor]):
    """Symmetric matrices (numel, numel) by block name.

    Attributes:
        asymmetry: By block name what the products gave beside the symmetric part, ``|H - H'| / (sqrt(2) |H|)`` in
            Frobenius norms: the relative error of a product. About the rounding of the precision where the second
            derivative is right; about 1 for a block without curvature, which is nothing but rounding.
    """

    def __init__(self) -> None:
        """Begin without blocks."""
        super().__init__()
        self.asymmetry: dict[str, float] = {}


@failures_in_words("the matrices were formed")
@torch.inference_mode(False)
def dense_blocks(operator: CurvatureOperator, settings: JobSettings, progress: bool | None) -> DenseBlocks:
    """Multiply all blocks of an operator by the unit vectors, slab by slab, and keep the symmetric parts.

    Args:
        operator: The operator.
        settings: What was asked for.
        progress: True shows progress, False hides it, None shows it on a terminal.

    Raises:
        OutOfMemoryError: The matrices do not fit.
        NotFiniteError: A product is not finite.
        SecondDerivativeError: The second derivative is wrong, or cannot be tested.
        NonDeterministicError: The model or the data changes meanwhile.
    """
    numel = operator.numel
    operator.checked = settings.check
    operator.hold_steady()
    need = _room_for_matrices(operator, settings)
    if settings.check:
        operator.verify(numel)
    if settings.head_curvature:
        operator.form_head_curvature(numel, progress, settings.head_curvature_tolerance)
    operator.scheduler.reserve(need + operator.held_bytes)
    matrices = {block: BlockMatrix(size, operator.dtype, operator.device) for block, size in numel.items()}
    found = DenseBlocks()
    with retained_heap(), ProgressReporter("dense", sum(numel.values()), progress) as reporter:
        while live := [block for block, matrix in matrices.items() if matrix.left]:
            products = operator.sweep({block: matrices[block].vectors() for block in live})
            refuse_nonfinite(operator.partition, products)
            for block, rows in products.items():
                matrices[block].take(rows)
            reporter.advance(sum(len(rows) for rows in products.values()))
    operator.look()
    for block, matrix in matrices.items():
        found.asymmetry[block] = make_symmetric(matrix.rows)
        found[block] = matrix.rows
    return found


def make_symmetric(matrix: Tensor) -> float:
    """Replace a square matrix by its symmetric part, to the last bit, without a copy of it.

    Returns:
        The norm of what is lost, ``|H - H'| / 2``, in units of ``|H| / sqrt(2)``; 0 for a matrix of zeros.
    """
    size = float(torch.linalg.vector_norm(matrix))
    apart = 0.0
    for row in range(0, len(matrix), _TILE):
        for column in range(row, len(matrix), _TILE):
            upper = matrix[row : row + _TILE, column : column + _TILE]
            lower = matrix[column : column + _TILE, row : row + _TILE].t()
            times = 1.0 if row == column else 2.0
            apart += times * float(torch.linalg.vector_norm(upper - lower, dtype=torch.float64)) ** 2
            mean = (upper + lower) / 2
            upper.copy_(mean)
            lower.copy_(mean)
    return math.sqrt(apart / 2.0) / size if size else 0.0


def _room_for_matrices(operator: CurvatureOperator, settings: JobSettings) -> int:
    """Return the bytes that all matrices and the vectors of a sweep take.

    Raises:
        OutOfMemoryError: They do not fit beside the graph of a micro-batch.
    """
    numel, plan = operator.numel, operator.scheduler.plan
    need = sum(matrix_bytes(size, settings) for size in numel.values())
    operator.scheduler.make_room(need)
    room = spare(operator.scheduler.working_bytes, plan.budget, 0)
    if need <= room:
        return need
    largest, fits = max(numel.values()), largest_matrix(int(_SURE * room), settings)
    kind = str(operator.dtype).removeprefix("torch.")
    cheaper = "precision='fp32', " if operator.dtype == torch.float64 else ""
    what = f"The matrix of a block of {format_count(largest)} parameters"
    if len(numel) > 1:
        what = f"The matrices of {len(numel)} blocks, the largest of {format_count(largest)} parameters,"
    raise OutOfMemoryError(
        f"{what} would need {format_bytes(need)} in {kind}; {format_bytes(max(room, 0))} are left beside the gradient "
        f"graph, enough for one block of {format_count(fits)} parameters. Take "
        f"smaller or fewer blocks, {cheaper}raise memory=, or ask for what needs no matrix: slq, or operator @ v."
    )
