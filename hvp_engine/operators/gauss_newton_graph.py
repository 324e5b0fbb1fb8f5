"""One micro-batch's gradient as a graph in which the loss's gradient with respect to the model's outputs is a constant.

With outputs z, and s = dL/dz taken for a constant, the gradient is J's, and linear in s. Asking autograd for the
derivative of <J_b's, v> with respect to s gives J_b v, pruned to what lies above the block: derivatives in reverse mode
alone, which every operation has that has a second one. The loss's own second derivative multiplies that, and J_b'
brings it back to the block: never more than a Hessian product, which passes the same layers, and their curvature too.
The derivative of J_b's with respect to the parameters is what the Hessian has beside it.

Where linear head and cross-entropy are fused, z are hidden states, weights and bias of the head. For blocks without the
head's weights the loss is convex in the hidden states, and its second derivative is the formed head curvature, or the
panels of :mod:`hvp_engine.ops.head.by_classes`; for the others the head's own share is split off by chunks of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.autograd.graph import Node

from hvp_engine.operators.backward import backward
from hvp_engine.operators.gradient_graph import GradientGraph, Products
from hvp_engine.operators.outputs.find import FusedLoss, LossTerm, find_losses, fused_loss, weights_of
from hvp_engine.operators.outputs.loss import OutputLoss


class OutputGraph(GradientGraph):
    """The gradient of a total by way of the model's outputs."""

    is_part = True

    def _differentiate(self, total: Tensor) -> Products:
        self._total = total  # keeps the nodes alive that are known by their edges alone
        found = find_losses(total, self._parameters, self._recognise)
        weights = self._weights(total, found.terms)
        self._losses = [OutputLoss(term, weight) for term, weight in zip(found.terms, weights, strict=True)]
        slopes = [
            (edge, constant)
            for loss in self._losses
            for edge, constant in zip(loss.term.outputs, loss.constants, strict=True)
        ]
        if not slopes:
            return (None,) * len(self._parameters)
        for edge in found.linear:
            (whole,) = backward([total], [edge], None)
            assert whole is not None
            slopes.append((edge, whole - sum(slope.detach() for other, slope in slopes if other == edge)))
        edges, constants = [edge for edge, _ in slopes], [constant for _, constant in slopes]
        return backward(edges, list(self._parameters.values()), constants, create_graph=True)

    def _recognise(self, node: Node) -> FusedLoss | None:
        return fused_loss(node)

    def _weights(self, total: Tensor, terms: tuple[LossTerm, ...]) -> list[Tensor]:
        return weights_of(total, terms)

    @property
    def _passed(self) -> Iterable[Tensor | None]:
        return (*super()._passed, *(slope for loss in self._losses for slope in loss.slopes))

    def _tangents(
        self, outputs: list[Tensor], cotangents: list[Tensor], losses: Sequence[OutputLoss], *, batched: bool
    ) -> list[Sequence[Tensor | None]]:
        """Multiply a block's vectors by the Jacobian of the outputs of some losses."""
        constants = [constant for loss in losses for constant in loss.constants]
        found = iter(backward(outputs, constants, cotangents, batched=batched))
        return [[next(found) for _ in loss.constants] for loss in losses]

    def _back(
        self,
        losses: Sequence[OutputLoss],
        inputs: list[Tensor],
        of_outputs: list[Sequence[Tensor | None]],
        *,
        batched: bool,
    ) -> Products:
        """Multiply vectors of the outputs by the transposed Jacobian."""
        edges = [edge for loss in losses for edge in loss.term.outputs]
        pairs = [
            (edge, vector)
            for edge, vector in zip(edges, (v for vectors in of_outputs for v in vectors), strict=True)
            if vector is not None
        ]
        if not pairs:
            return (None,) * len(inputs)
        return backward([edge for edge, _ in pairs], inputs, [vector for _, vector in pairs], batched=batched)

    def _gauss_newton(
        self, outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, batched: bool
    ) -> Products:
        tangents = self._tangents(outputs, cotangents, self._losses, batched=batched)
        moved = [loss.gauss_newton(t, batched=batched) for loss, t in zip(self._losses, tangents, strict=True)]
        return self._back(self._losses, inputs, moved, batched=batched)

    def _residual(
        self, outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, batched: bool
    ) -> Products:
        products = super()._hessian(outputs, inputs, cotangents, batched=batched)
        heads = [loss for loss in self._losses if loss.bends(inputs)]
        if not heads:
            return products
        tangents = self._tangents(outputs, cotangents, heads, batched=batched)
        moved = [loss.residual(t, batched=batched) for loss, t in zip(heads, tangents, strict=True)]
        return _sum(products, self._back(heads, inputs, moved, batched=batched))

    def _hessian(
        self, outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, batched: bool
    ) -> Products:
        both = (self._gauss_newton, self._residual)
        return _sum(*(multiply(outputs, inputs, cotangents, batched=batched) for multiply in both))


class GaussNewtonGraph(OutputGraph):
    """Multiplies by the generalised Gauss-Newton matrix."""

    semidefinite = True

    def _multiply(
        self, outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, batched: bool
    ) -> Products:
        return self._gauss_newton(outputs, inputs, cotangents, batched=batched)


class ResidualGraph(OutputGraph):
    """Multiplies by what the Hessian has beside the Gauss-Newton matrix."""

    def _multiply(
        self, outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, batched: bool
    ) -> Products:
        return self._residual(outputs, inputs, cotangents, batched=batched)


def _sum(first: Products, second: Products) -> Products:
    """Add products, of which None is zero."""
    return tuple(b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True))
