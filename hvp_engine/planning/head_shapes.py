"""A softmax head without its arithmetic: the engine computes its loss with the logits kept, and so it is counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.applies import autocast_operands
from hvp_engine.ops.head.by_tokens import Part
from hvp_engine.ops.head.lazy_logits import FusedHead, HeadLogits
from hvp_engine.planning.meter import Family, Meter, Operation
from hvp_engine.planning.shapes import Pass, RowKernel, reduced, run_shapes

# Over logits per pass, besides the products: logits and their tangents read, the result written. The panels of
# `by_classes` keep tangents and results in a cache where it is large enough; a prediction does not rely on it.
_PASSES = 3


class HeadKernel(RowKernel):
    """Linear head and cross-entropy, as in :mod:`hvp_engine.ops.head.by_tokens`; operands hidden, weight, bias."""

    family: Family = "head"

    def __init__(self, meter: Meter, hidden: Tensor, weight: Tensor) -> None:
        super().__init__(meter, 3)
        self._sizes = (hidden.shape[0], weight.shape[1], weight.shape[0])
        self._item = hidden.element_size()

    @property
    def _product(self) -> float:
        rows, width, classes = self._sizes
        return 2.0 * rows * width * classes

    def outcome(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """One loss per row."""
        assert tensors[0] is not None
        return tensors[0].new_empty(tensors[0].shape[0], dtype=accumulator(tensors[0].dtype))

    def kept(self, tensors: Sequence[Tensor | None], out: Tensor) -> tuple[Tensor, ...]:
        """Two numbers per row, the logits, and the mean weights that the first derivative leaves for the second."""
        assert tensors[0] is not None
        rows, width, classes = self._sizes
        means = tensors[0].new_empty(rows, width, dtype=accumulator(tensors[0].dtype))
        return (*super().kept(tensors, out), tensors[0].new_empty(rows, classes), means)

    def forward(self, tensors: Sequence[Tensor | None]) -> Pass:
        """Describe the logits."""
        return Pass(self._product, self.family)

    def backward(self, tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> Pass:
        """Describe one product per wanted matrix."""
        hidden, weight, _ = wanted
        return Pass(self._product * (hidden + weight), self.family)

    def second(self, tensors: Sequence[Tensor | None], given: Sequence[bool], wanted: Sequence[bool]) -> Pass:
        """Describe the tangents of the logits, and what `head_hvp` makes of them."""
        hidden, weight, _ = given
        of_hidden, of_weight = wanted[:2]
        products = hidden + weight + of_hidden * (1 + weight) + of_weight * (1 + hidden)
        return Pass(self._product * products, self.family)

    def part(self, given: Sequence[bool], wanted: Sequence[bool], part: Part, times: int) -> Pass:
        """Describe a part of that: tangents and what the loss makes of them, or products of tangents and gradients."""
        hidden, weight, _ = given
        of_hidden, of_weight, _ = wanted
        products = of_hidden * weight + of_weight * hidden
        if part != Part.RESIDUAL:
            products = hidden + weight + of_hidden + of_weight
        return Pass(times * self._product * products, self.family)

    def count(self, done: Pass, tensors: Iterable[Tensor | None]) -> None:
        """Report each product, and the element-wise passes over the logits."""
        rows, width, classes = self._sizes
        logits = self._item * rows * classes
        product = Operation(self._product, float(logits + self._item * width * (rows + classes)), self.family)
        for _ in range(round(done.flop / self._product)):
            self.meter.work.add(product)
        self.meter.products[self._sizes] += int(done.flop)
        self.meter.work.add(Operation(0.0, float(_PASSES * logits), "loss"))


class HeadOnShapes(FusedHead):
    """Takes the logits of some weights uncomputed to the cross-entropy, and remembers which ones arrived there.

    Attributes:
        rows: Rows of logits by the id of their weights, in every loss so far.
    """

    def __init__(self, meter: Meter, weights: Iterable[Tensor]) -> None:
        self._meter = meter
        self._weights = {id(weight) for weight in weights}
        self.rows: dict[int, int] = {}

    def matches(self, weight: Tensor) -> bool:
        """Say whether these are weights of a head, or may be."""
        return id(weight) in self._weights

    def loss(self, logits: HeadLogits, target: Tensor, **options: Any) -> Tensor:
        """Cross-entropy of the logits, by shape; only the option ``reduction`` changes that."""
        key = id(logits.weight)
        self.rows[key] = self.rows.get(key, 0) + logits.hidden.shape[0]
        hidden, weight, bias = autocast_operands(logits.device, logits.hidden, logits.weight, logits.bias)
        assert hidden is not None and weight is not None
        losses = run_shapes(HeadKernel(self._meter, hidden, weight), hidden, weight, bias, target)
        return reduced(losses, options["reduction"])
