"""One loss of a total with its derivatives with respect to the model's outputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hvp_engine.operators.autograd_nodes import nodes_from
from hvp_engine.operators.backward import backward
from hvp_engine.operators.outputs.find import LossTerm
from hvp_engine.ops.head.by_tokens import Part

Vectors = Sequence[Tensor | None]
"""Vectors of each of the outputs, with a leading dimension k where several are batched; None stands for zero."""


class OutputLoss:
    """A convex loss's part of a total as a function of the outputs.

    The outputs of a fused head are hidden states, weights and bias. The loss is convex in the hidden states, not in all
    three together: where weights or bias move, what the loss makes of the logits is told apart from what the head does.

    Attributes:
        term: Where it is in the graph.
        constants: Its gradients with respect to the outputs, cut out of the graph.
        slopes: The same, attached to the graph of the loss; None for weights and bias of a head.
    """

    def __init__(self, term: LossTerm, weight: Tensor) -> None:
        """Differentiate the loss.

        Args:
            term: Where it is.
            weight: Weights of its values in the total.
        """
        self.term = term
        self._weight = weight
        self._places = _places(term)
        of_head = [edge.node for edge, place in zip(term.outputs, self._places, strict=True) if place > 0]
        self._of_head = {id(getattr(node, "variable", None)) for node in nodes_from(of_head)} - {id(None)}
        by_graph = [i for i, place in enumerate(self._places) if place == 0]
        edges = [term.outputs[i] for i in by_graph]
        found = backward([term.values], edges, [weight], create_graph=True) if edges else ()
        attached = dict(zip(by_graph, found, strict=True))
        self.slopes = tuple(attached.get(i) for i in range(len(self._places)))
        rest: Sequence[Tensor] = ()
        if term.head is not None and len(by_graph) < len(self._places):
            rest = term.head.slopes(term.node, weight, [place in self._places and place > 0 for place in range(3)])
        self.constants = tuple(
            (rest[place] if slope is None else slope).detach().requires_grad_()
            for slope, place in zip(self.slopes, self._places, strict=True)
        )

    def bends(self, parameters: Sequence[Tensor]) -> bool:
        """Say whether some of the parameters enter weights or bias of a head."""
        return any(id(parameter) in self._of_head for parameter in parameters)

    def gauss_newton(self, tangents: Vectors, *, batched: bool) -> Vectors:
        """Multiply tangents of the outputs by the loss's second derivative with respect to the model's outputs."""
        if self._moves_head(tangents):
            return self._head(tangents, Part.GAUSS_NEWTON, batched=batched)
        # Outputs that the block does not move are not on the way back to it.
        moved: list[int] = []
        slopes: list[Tensor] = []
        given: list[Tensor] = []
        for i, (slope, tangent) in enumerate(zip(self.slopes, tangents, strict=True)):
            if tangent is not None and slope is not None and slope.requires_grad:
                moved.append(i)
                slopes.append(slope)
                given.append(tangent)
        if not moved:
            return [None] * len(tangents)
        found = dict(
            zip(moved, backward(slopes, [self.term.outputs[i] for i in moved], given, batched=batched), strict=True)
        )
        return [found.get(i) for i in range(len(tangents))]

    def residual(self, tangents: Vectors, *, batched: bool) -> Vectors:
        """Multiply by what a head has beside that: logits are bilinear in its weights and hidden states."""
        if not self._moves_head(tangents) or sum(t is not None for t in tangents) < 2:
            return [None] * len(tangents)
        return self._head(tangents, Part.RESIDUAL, batched=batched)

    def _moves_head(self, tangents: Vectors) -> bool:
        """Say whether weights or bias of a head move."""
        return any(t is not None and place > 0 for place, t in zip(self._places, tangents, strict=True))

    def _head(self, tangents: Vectors, part: Part, *, batched: bool) -> Vectors:
        assert self.term.head is not None
        directions: list[Tensor | None] = [None] * 3
        for place, tangent in zip(self._places, tangents, strict=True):
            directions[place] = tangent if batched or tangent is None else tangent.unsqueeze(0)
        wanted = [direction is not None for direction in directions]
        products = self.term.head.product(self.term.node, self._weight, directions, wanted, part)
        found = [products[place] if wanted[place] else None for place in self._places]
        return found if batched else [None if p is None else p.squeeze(0) for p in found]


def _places(term: LossTerm) -> list[int]:
    """Return which operands of a head the outputs are: 0 hidden states, 1 weights, 2 bias; of another loss 0."""
    if term.head is None:
        return [0] * len(term.outputs)
    taken = [(node, number) for node, number in term.node.next_functions]
    return [taken.index((edge.node, edge.output_nr)) for edge in term.outputs]
