"""The Hessian of an objective as a block-diagonal operator."""

from __future__ import annotations

from hvp_engine.operators.gradient_operator import GradientOperator


class HessianOperator(GradientOperator):
    """Products H_bb v with the diagonal blocks of an objective's Hessian.

    Reverse-over-reverse (Pearlmutter 1994): the gradient of a micro-batch is kept as a graph, and a second backward
    pass through it, pruned to the block, multiplies by the block's Hessian.

    Attributes:
        blocks: Block names in order.
        numel: Length of each block's vectors.
        notes: What was decided about tied and frozen parameters, in plain words.
    """

    matrix = "hessian"
    measures_late = True
