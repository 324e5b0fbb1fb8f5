"""Products with the blocks of a curvature matrix, and its small blocks whole, without a job: ``hvp``, ``dense``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from hvp_engine.api.building import builder
from hvp_engine.blocks import BlockSpec
from hvp_engine.krylov.settings import JobSettings, whole_number
from hvp_engine.operators.dense import DenseBlocks, dense_blocks
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.operators.preconditioned import Precondition
from hvp_engine.operators.registry import operator_named
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision


class _SingleProduct(HessianOperator):
    """The Hessian for one product, in which a fused head saves no more than the evaluation that finds it takes."""

    finds_head = False


def hvp(
    model: nn.Module,
    loss: Loss,
    vectors: Mapping[str, Tensor],
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    seed: int = 0,
    operator: str = "hessian",
    precision: Precision = "fp32",
) -> dict[str, Tensor]:
    """Products of vectors with diagonal blocks of the Hessian, or of another curvature matrix.

    A call costs a forward and two backward passes, and one evaluation of the first two samples of the largest batch,
    which shows whether the loss is the same every time. What products of a job have beside that is left out: the second
    derivative is held against finite differences only where the loss has custom functions or cuts its graph, and no
    head is fused. Another matrix than the Hessian takes an evaluation more, which looks for the head. For several
    products one after another make a :class:`hvp_engine.HessianOperator`, which keeps the gradient's graph.

    Args:
        model: The network; never changed.
        loss: ``loss(model, batch)``, or ``loss(model)`` when ``data`` is None. It returns the mean over its batch as a
            scalar, or ``(total, weight)``.
        vectors: (k, numel) per block name; blocks may be left out.
        blocks: ``None``/``"full"``, ``"parameter"``, ``"module"``, parameter names, a mapping of names to globs, or
            :class:`hvp_engine.Block` objects.
        data: Re-iterable of batches, as for :func:`slq`.
        seed: Decides what an operator draws; the Hessian draws nothing.
        operator: The matrix, one of :data:`hvp_engine.operators.registry.OPERATORS`.
        precision: ``"fp64"``, ``"fp32"``, ``"tf32"`` or ``"bf16"``.

    Returns:
        H_bb v per block, (k, numel), float64 for ``"fp64"`` and float32 otherwise.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    seed = whole_number("seed", seed)
    kind = operator_named(operator)
    if kind is HessianOperator:
        kind = _SingleProduct
    made = kind(model, loss, blocks, data=data, precision=precision, seed=seed)
    try:
        return made.matmat(vectors)
    finally:
        made.release()  # it refers to itself, so that its graph would live on until the garbage collector runs


def dense(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    seed: int = 0,
    operator: str = "hessian",
    precondition: Precondition | None = None,
    precision: Precision = "fp64",
    microbatch: int | None = None,
    memory: int | None = None,
    head_curvature: bool = True,
    check: bool = True,
    progress: bool | None = None,
) -> DenseBlocks:
    """Whole matrices of blocks of up to a few thousand parameters, for a look at every entry, or for LAPACK.

    Unit vectors are multiplied in slabs, all blocks on one gradient graph: as many products as a block has parameters.
    What is returned is symmetric to the last bit; how far the products were from that is its ``asymmetry``.

    Args:
        model: The network; never changed.
        loss: As for :func:`hvp`.
        blocks: As for :func:`hvp`; every block gives one matrix, and what lies between blocks is not computed.
        data: As for :func:`hvp`.
        seed: Decides what an operator draws; the Hessian draws nothing.
        operator: The matrix, one of :data:`hvp_engine.operators.registry.OPERATORS`.
        precondition: As for :func:`slq`.
        precision: Arithmetic of the products: ``"fp64"``, the default here, as entries are looked at and matrices
            inverted; ``"fp32"``, ``"tf32"`` and ``"bf16"`` give float32.
        microbatch: Samples differentiated at once; None takes whole batches while they fit.
        memory: Budget in bytes for graphs and matrices; None takes 80 % of what is free.
        head_curvature: As for :func:`slq`.
        check: Test the second derivative for symmetry and against finite differences first.
        progress: True shows progress, False hides it, None shows it on a terminal.

    Returns:
        A dict of (numel, numel) tensors by block name, with the attribute ``asymmetry``, which has a relative error by
        block name.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix; OutOfMemoryError says what would fit.
    """
    settings = JobSettings(
        steps=1,
        seed=seed,
        precision=precision,
        microbatch=microbatch,
        memory=memory,
        head_curvature=head_curvature,
        check=check,
    )
    build = builder(model, loss, blocks, data=data, settings=settings, operator=operator, precondition=precondition)
    return dense_blocks(build(), settings, progress)
