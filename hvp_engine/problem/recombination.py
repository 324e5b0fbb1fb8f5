"""Whether the loss of two pieces of data, weighted, is the loss of both together.

Equal values alone may be a coincidence: a head of zeros gives log(classes) for every token, whatever weights tokens
have. Where the pieces' values are too close to tell, the gradients are compared too, along one fixed direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hvp_engine.problem.growth import ROUNDING, Value, value_of
from hvp_engine.problem.objective import Objective
from hvp_engine.system.failures import pass_on

_TELLING = 1e-2  # pieces whose losses differ by this much, relatively, show a weight that is wrong by a percent


@dataclass
class Piece:
    """Samples and what the loss says of them; the value is computed once."""

    objective: Objective
    batch: Any
    _value: Value | None = None

    @property
    def value(self) -> Value:
        """Total and weight."""
        if self._value is None:
            self._value = value_of(self.objective, self.batch)
        return self._value

    def slope(self) -> tuple[float, float]:
        """Return the total's derivative along a fixed direction of signs, and its gradient's norm."""
        parameters = [p for p in self.objective.parameters.values() if p.requires_grad]
        total, _ = self.objective.evaluate(self.batch)
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        generator = torch.Generator().manual_seed(0)
        slope = square = 0.0
        for gradient in gradients:
            if gradient is None:
                continue
            flat = (gradient.to_dense() if gradient.layout != torch.strided else gradient).reshape(-1)
            flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
            signs = torch.randint(0, 2, flat.shape, generator=generator, dtype=torch.int8, device="cpu").to(flat.device)
            slope += float((flat * (2 * signs - 1)).sum(dtype=torch.float64))
            square += float(flat.double().square().sum())
        return slope, square**0.5


def disagreement(first: Piece, second: Piece, both: Piece) -> str | None:
    """Compare two pieces with the batch of both; call inside the objective's arithmetic.

    Returns:
        In words what changes where the batch is cut into the two pieces; None where nothing does.

    Raises:
        HvpEngineError: The loss does not take one of the pieces.
    """
    a, b, whole = first.value, second.value, both.value
    weight, rounding = a.weight + b.weight, ROUNDING[both.objective.precision]
    if abs(whole.weight - weight) > 1e-5 * weight:
        return f"the weight from {whole.weight:.6g} to {a.weight:.6g} + {b.weight:.6g}"
    if weight == 0:
        return None
    mean, recombined = whole.total / weight, (a.total + b.total) / weight
    scale = (abs(a.total) + abs(b.total)) / weight
    if abs(mean - recombined) > rounding * max(scale, abs(mean)):
        return f"the loss from {mean:.6g} to {recombined:.6g}"
    alike = min(a.weight, b.weight) > 0 and abs(a.total / a.weight - b.total / b.weight) <= scale * max(
        _TELLING, 10 * rounding
    )
    change = _change_of_gradient(first, second, both) if alike else 0.0
    return f"its gradient by about {100 * change:.2g} %" if change > max(1e-3, 5 * rounding) else None


def _change_of_gradient(first: Piece, second: Piece, both: Piece) -> float:
    try:
        (along_a, norm_a), (along_b, norm_b), (along, _) = first.slope(), second.slope(), both.slope()
    except RuntimeError as error:
        pass_on(error)
        return 0.0  # there is no gradient: whoever needs it next explains why
    return abs(along - along_a - along_b) / max(norm_a + norm_b, 1e-300)
