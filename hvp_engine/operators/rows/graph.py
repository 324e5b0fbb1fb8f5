"""One micro-batch's rows as functions of the parameters, and products with J' D J, J being their derivative.

J v by two backward passes: g = J'u is linear in u, and the gradient of <g, v> with respect to u is J v. Then J' is one
more pass. Neither differentiates the model twice; both are pruned to what lies above the block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvp_engine.operators.backward import backward
from hvp_engine.operators.gradient_graph import GradientGraph


class RowGraph(GradientGraph):
    """The derivative of some values, kept for all blocks and probes, with products J' D J v."""

    def __init__(
        self,
        values: Tensor,
        factors: Tensor,
        weight: float,
        parameters: dict[str, nn.Parameter],
        *,
        of_all_blocks: bool = True,
    ) -> None:
        """Run the first backward pass, keeping its graph.

        Args:
            values: (rows,), attached to the graph.
            factors: The diagonal D (rows,).
            weight: Weight of the micro-batch in the objective.
            parameters: The parameters that blocks touch, by canonical name.
            of_all_blocks: Whether these are the parameters of all blocks, of which some must enter the values.

        Raises:
            ObjectiveError: None of the parameters of all blocks enters the values.
            SecondDerivativeError: An operation has no derivative.
        """
        self._values, self._factors = values, factors
        self._seeds = torch.ones_like(values, requires_grad=True)
        super().__init__((values * self._seeds).sum(), weight, parameters, of_all_blocks=of_all_blocks)

    def slopes(self) -> Tensor:
        """Return the derivative of every value along one direction, the same for every graph of these parameters."""
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(p.shape, generator=generator).to(p.device, p.dtype) for p in self.parameters.values()]
        pairs = [(g, v) for g, v in zip(self.gradients.values(), drawn, strict=True) if g is not None]
        outputs, cotangents = (list(half) for half in zip(*pairs, strict=True))
        (slopes,) = backward(outputs, [self._seeds], cotangents)
        return torch.zeros_like(self._seeds) if slopes is None else slopes.detach()

    def _multiply(
        self, outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, batched: bool
    ) -> tuple[Tensor | None, ...]:
        (slopes,) = backward(outputs, [self._seeds], cotangents, batched=batched)
        if slopes is None:
            return (None,) * len(inputs)
        return backward([self._values], inputs, [slopes * self._factors], batched=batched)
