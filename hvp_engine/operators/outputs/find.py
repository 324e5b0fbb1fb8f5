"""Finds where a loss takes the model's outputs: values that are convex in them, which are weighed and added up.

A loss is run, and its graph is followed back from the total. What only weighs and adds (means, sums, masks, products
with constants) is passed; it has to end at losses that are known to be convex (or, with weights below zero, concave) in
what they are computed from. That is the output of the model. A total that reaches parameters in another way has no
Gauss-Newton matrix, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from hvp_engine.errors import ObjectiveError
from hvp_engine.operators.autograd_nodes import function_of, name_of, nodes_from, operation_of
from hvp_engine.operators.backward import backward
from hvp_engine.operators.outputs.linear import SHAPES, is_linear
from hvp_engine.ops.cross_entropy import CROSS_ENTROPY
from hvp_engine.ops.head.linear_cross_entropy import LINEAR_CROSS_ENTROPY
from hvp_engine.ops.head.parts import HeadParts

# Convex (1) or concave (-1) in their first input, the others being constants.
_OF_ONE = {
    "BinaryCrossEntropyWithLogitsBackward0": 1,
    "HuberLossBackward0": 1,
    "LogSigmoidBackward0": -1,
    "LogSoftmaxBackward0": -1,
    "LogsumexpBackward0": 1,
    "SmoothL1LossBackward0": 1,
    "SoftMarginLossBackward0": 1,
    "SoftplusBackward0": 1,
}
_FIXES = (
    "Write it with F.cross_entropy, F.mse_loss, F.binary_cross_entropy_with_logits or the like, with weights and masks "
    "that do not depend on the parameters, and without further terms (weight decay, a z-loss, an auxiliary loss of "
    'the model); operator="hessian" takes any loss.'
)


@dataclass(frozen=True)
class LossTerm:
    """Values of a convex or concave loss.

    Attributes:
        node: What computed them.
        sign: 1 where they are convex in the outputs, -1 where they are concave.
        outputs: Where the outputs come from that depend on the parameters.
        head: Derivatives of a loss fused with a linear head, of whose operands (hidden states, weights, bias) the
            outputs are some; None for any other.
    """

    node: Node
    sign: int
    outputs: tuple[GradientEdge, ...]
    head: HeadParts | None = None

    @property
    def values(self) -> GradientEdge:
        """Where the values leave the node."""
        return GradientEdge(self.node, 0)


@dataclass(frozen=True)
class FusedLoss:
    """What is known of a fused loss, which is convex in its first operand or, where there is a head, in the logits."""

    head: HeadParts | None = None


def fused_loss(node: Node) -> FusedLoss | None:
    """Recognise this package's own losses."""
    function = function_of(node)
    if function is LINEAR_CROSS_ENTROPY:
        return FusedLoss(HeadParts())
    return FusedLoss() if function is CROSS_ENTROPY else None


@dataclass(frozen=True)
class Found:
    """What a total adds up.

    Attributes:
        terms: The losses.
        linear: Outputs of theirs that enter the total linearly as well.
    """

    terms: tuple[LossTerm, ...]
    linear: tuple[GradientEdge, ...] = ()


Recognise = Callable[[Node], FusedLoss | None]


def find_losses(total: Tensor, parameters: Mapping[str, Tensor], recognise: Recognise = fused_loss) -> Found:
    """Find the losses that a total adds up, and the outputs that they are computed from.

    Args:
        total: Scalar, attached to the graph.
        parameters: The parameters that are to vary, by name.
        recognise: Knows the fused losses.

    Returns:
        The losses and their outputs; none where the total does not depend on the parameters.

    Raises:
        ObjectiveError: The total depends on the parameters in another way.
    """
    search = _Search(parameters, recognise)
    return search.losses(total)


def unchecked_weights(total: Tensor, losses: tuple[LossTerm, ...]) -> list[Tensor]:
    """Return the weights with which values of losses enter a total, in the values' shapes."""
    weights = [w for w in backward([total], [loss.values for loss in losses], None) if w is not None] if losses else []
    assert len(weights) == len(losses)
    return weights


def weights_of(total: Tensor, losses: tuple[LossTerm, ...]) -> list[Tensor]:
    """Return the weights with which values of losses enter a total, in the values' shapes, as long as they are right.

    Raises:
        ObjectiveError: Some have the wrong sign, so that the total is not convex in the outputs.
    """
    weights = unchecked_weights(total, losses)
    for loss, weight in zip(losses, weights, strict=True):
        worst = float((loss.sign * weight).min()) if weight.numel() else 0.0
        if worst < 0:
            raise ObjectiveError(
                f"The loss is not convex in the model's output: values of {operation_of(loss.node)} enter it with the "
                f"weight {loss.sign * worst:.3g}, of the wrong sign. The Gauss-Newton matrix is defined for convex "
                'losses; operator="hessian" takes any.'
            )
    return weights


class _Search:
    """Follows one total to its losses."""

    def __init__(self, parameters: Mapping[str, Tensor], recognise: Recognise) -> None:
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._recognise = recognise
        self._reached: dict[Node, str | None] = {}  # a parameter that lies behind each node
        self._terms: dict[Node, LossTerm] = {}
        self._ends: list[GradientEdge] = []  # what enters linearly, and is no loss

    def losses(self, total: Tensor) -> Found:
        root = total.grad_fn
        if root is None:
            return Found(())
        self._mark(root)
        pending, seen = [(root, 0)], {(root, 0)}
        while pending:
            node, number = pending.pop()
            if self._reached[node] is None:
                continue
            term = self._term(node)
            varying = self._varying(node)
            if term is not None:
                self._terms[node] = term
            elif varying and is_linear(node, varying):
                for i in varying:
                    following, position = node.next_functions[i]
                    assert following is not None
                    if (following, position) not in seen:
                        seen.add((following, position))
                        pending.append((following, position))
            else:
                self._ends.append(_unshaped(GradientEdge(node, number)))
        self._refuse_others()
        return Found(tuple(self._terms.values()), tuple(self._ends))

    def _mark(self, root: Node) -> None:
        """Note for every node a parameter that it depends on."""
        pending: list[tuple[Node, bool]] = [(root, False)]
        while pending:
            node, done = pending.pop()
            if done:
                behind = (self._reached[n] for n, _ in node.next_functions if n is not None)
                variable: Any = getattr(node, "variable", None)
                self._reached[node] = next((name for name in behind if name is not None), self._names.get(id(variable)))
            elif node not in self._reached:
                self._reached[node] = None
                pending.append((node, True))
                pending += [(n, False) for n, _ in node.next_functions if n is not None]

    def _varying(self, node: Node) -> list[int]:
        return [i for i, (n, _) in enumerate(node.next_functions) if n is not None and self._reached[n] is not None]

    def _term(self, node: Node) -> LossTerm | None:
        """Return the loss that a node computes; None for any other node."""
        varying, name = self._varying(node), name_of(node)
        fused = self._recognise(node)
        if fused is not None:
            outputs = self._edges(node, varying) if fused.head is None else self._operands(node, varying)
            return LossTerm(node, 1, outputs, fused.head)
        if name in _OF_ONE and varying == [0]:
            return LossTerm(node, _OF_ONE[name], self._edges(node, varying))
        # A square is convex in both of what it is the difference of.
        if name == "MseLossBackward0" or self._is_squared_difference(node):
            return LossTerm(node, 1, self._edges(node, varying[:1] if name == "MulBackward0" else varying))
        return None

    @staticmethod
    def _operands(node: Node, positions: Iterable[int]) -> tuple[GradientEdge, ...]:
        edges = (node.next_functions[i] for i in positions)
        return tuple(GradientEdge(n, number) for n, number in edges if n is not None)

    @classmethod
    def _edges(cls, node: Node, positions: Iterable[int]) -> tuple[GradientEdge, ...]:
        """Return outputs as they are before changes of shape, which several losses of one may make, and each once."""
        return tuple(dict.fromkeys(_unshaped(edge) for edge in cls._operands(node, positions)))

    def _is_squared_difference(self, node: Any) -> bool:
        """Say whether a node squares a difference: (output - target) ** 2, or its product with itself."""
        name = name_of(node)
        if name == "PowBackward0":
            if float(node._saved_exponent) != 2.0:
                return False
        elif name != "MulBackward0" or node.next_functions[0] != node.next_functions[1]:
            return False
        argument = _unshaped(GradientEdge(*node.next_functions[0])).node
        if name_of(argument) not in ("RsubBackward1", "SubBackward0", "SubBackward1"):
            return False
        # Of parameters alone it is weight decay.
        return any(not hasattr(argument.next_functions[i][0], "variable") for i in self._varying(argument))

    def _refuse_others(self) -> None:
        """Refuse ways from the total to the parameters that pass no loss, except linear ones from the outputs."""
        outputs = {edge for term in self._terms.values() for edge in term.outputs}
        for end in self._ends:
            if end in outputs:
                continue
            through = "itself" if hasattr(end.node, "variable") else f"through {operation_of(end.node)}"
            known = ", ".join(sorted({operation_of(term.node).strip("_") for term in self._terms.values()}))
            raise ObjectiveError(
                "The Gauss-Newton matrix needs a total that adds up losses which are convex in the model's output"
                f"{f' (found: {known})' if known else ''}, but parameter {self._reached[end.node]!r} "
                f"{'also ' if known else ''}enters this one {through}. {_FIXES}"
            )
        behind = nodes_from(edge.node for edge in outputs)
        nested = any(_is_below(end, other) for end in self._ends for other in outputs)
        if nested or not self._terms.keys().isdisjoint(behind) or any(map(_compares_with_itself, self._terms.values())):
            raise ObjectiveError(
                "A loss of this model compares an output with what is computed from it, or enters the computation of "
                "another loss's output; the Gauss-Newton matrix is defined for losses of outputs beside each other. "
                f"{_FIXES}"
            )


def _compares_with_itself(term: LossTerm) -> bool:
    """Say whether one output of a loss is computed from another one."""
    if term.head is not None or len(term.outputs) < 2:
        return False
    return any(_is_below(output, other) for output in term.outputs for other in term.outputs)


def _unshaped(edge: GradientEdge) -> GradientEdge:
    while name_of(edge.node) in SHAPES:
        node, number = edge.node.next_functions[0]
        assert node is not None
        edge = GradientEdge(node, number)
    return edge


def _is_below(edge: GradientEdge, other: GradientEdge) -> bool:
    """Say whether the second is computed from the first."""
    return edge.node in nodes_from(node for node, _ in other.node.next_functions)
