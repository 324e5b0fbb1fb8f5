"""The generalised Gauss-Newton matrix of an objective, and what the Hessian has beside it, as operators."""

from __future__ import annotations

from hvp_engine.operators.gauss_newton_graph import GaussNewtonGraph, ResidualGraph
from hvp_engine.operators.gradient_operator import GradientOperator


class GaussNewtonOperator(GradientOperator):
    """Products G_bb v = J_b' H_out J_b v with the diagonal blocks of the generalised Gauss-Newton matrix.

    J_b is the Jacobian of the model's outputs with respect to a block, H_out the Hessian of the loss with respect to
    the outputs (Schraudolph 2002; Martens 2010). The outputs are found where the loss was run
    (:mod:`hvp_engine.operators.outputs.find`); a loss that is not convex in them is refused.
    """

    matrix = "ggn"
    graph = GaussNewtonGraph


class ResidualOperator(GradientOperator):
    """Products (H_bb - G_bb) v with what the Hessian's diagonal blocks have beside the Gauss-Newton matrix.

    It is the curvature of the outputs themselves, weighed by the loss's gradient with respect to them: one second
    backward pass in which that gradient is a constant, exact where a difference of two products would cancel.
    """

    matrix = "residual"
    graph = ResidualGraph
