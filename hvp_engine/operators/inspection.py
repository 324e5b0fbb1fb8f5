"""What the graph of a micro-batch's loss tells about its derivatives, looked at before the first product with it.

A model may take another path on every micro-batch (experts, conditional layers), so all of them are looked at, each
when its graph is first built. That is one walk over the nodes, a third of a microsecond each; what is known of a type
of nodes is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from torch import Tensor
from torch.autograd.graph import Node

from hvp_engine.errors import SecondDerivativeError
from hvp_engine.operators.autograd_nodes import function_of, name_of, nodes_behind
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.known_wrong import KNOWN_WRONG, known_wrong
from hvp_engine.problem.cuts import Cut

_TRUSTED = ("hvp_engine.", "torch.")
# Operations that users register with torch.library get an autograd.Function of PyTorch's, with their own backward.
_REGISTERED = "torch._library."

Suspect = type | Cut
"""What only a comparison with finite differences can clear: a custom autograd function, or a place that cuts graphs."""


class GraphInspection:
    """Looks at graphs, and remembers which micro-batches and which functions need no second look."""

    def __init__(self) -> None:
        self._micros: set[Hashable] = set()
        self._gradients: set[Hashable] = set()
        self._plain: set[type] = set()  # types of nodes that there is nothing to say about
        self.trusted: set[Suspect] = set()
        self.vouched: Callable[[Suspect], bool] = lambda suspect: False  # whether an earlier run has tested it

    def forget_micros(self) -> None:
        """Look at every micro-batch again: at other parameters a model may take other paths."""
        self._micros.clear()
        self._gradients.clear()

    def unknown(self, micro: Hashable, total: Tensor, cuts: Iterable[Cut]) -> set[Suspect]:
        """Look at the graph of a micro-batch's total, the first time that it is seen.

        Args:
            micro: What tells the micro-batch from others.
            total: Its total, attached to the graph.
            cuts: Where its forward pass took values out of the graph.

        Returns:
            These, and the custom functions in the graph: only a comparison with finite differences can tell right from
            wrong. They are returned until they are among ``trusted``.

        Raises:
            SecondDerivativeError: An operation's derivative is known to be wrong.
        """
        if micro in self._micros:
            return set()
        found: set[Suspect] = set(cuts)
        for node in nodes_behind([total]):
            kind = type(node)
            if kind in self._plain:
                continue
            refuse_known_wrong(node)
            function = custom_function(node)
            if function is not None:
                found.add(function)
            elif name_of(node) not in KNOWN_WRONG:
                self._plain.add(kind)
        self.trusted |= {suspect for suspect in found - self.trusted if self.vouched(suspect)}
        found -= self.trusted
        if not found:
            self._micros.add(micro)
        return found

    def refuse_cuts(self, micro: Hashable, graph: GradientGraph) -> None:
        """Refuse a gradient with a backward that is marked once_differentiable, the first time that it is seen."""
        if micro not in self._gradients:
            graph.refuse_cuts()
            self._gradients.add(micro)


def refuse_known_wrong(node: Node) -> None:
    """Raise SecondDerivativeError for a node whose derivative is known to be wrong."""
    wrong = known_wrong(node)
    if wrong is not None:
        raise SecondDerivativeError(f"{wrong.operation} {wrong.fault}; {wrong.fix}.")


def custom_function(node: Node) -> type | None:
    """Return the autograd.Function of a node that neither PyTorch nor this package wrote; None for any other node."""
    function = function_of(node)
    if function is None:
        return None
    module = f"{function.__module__}."
    return None if module.startswith(_TRUSTED) and not module.startswith(_REGISTERED) else function


def custom_functions(nodes: Iterable[Node]) -> set[type]:
    """Return the custom functions among some nodes."""
    return {function for node in nodes for function in [custom_function(node)] if function is not None}
