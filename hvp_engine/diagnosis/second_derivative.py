"""Does the second derivative that autograd gives agree with the gradient it gives? Checked before hours of work.

Two tests on a small piece of the data: symmetry, u'(Hv) = v'(Hu), which a backward pass that forgets a path breaks; and
central differences of the gradient, (g(theta + h v) - g(theta - h v)) / 2h against Hv, which catches what is symmetric
and still wrong. Both run on a float64 copy of the model where it can be made: a step of 1e-6 then leaves neither
rounding errors nor, in practice, kinks of piecewise linear activations between the two points.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvp_engine.blocks import BlockPart, Partition, ResolvedBlock
from hvp_engine.errors import BackwardError, SecondDerivativeError, not_finite
from hvp_engine.krylov.probes import probe
from hvp_engine.operators.backward import backward
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.head.fusion import HeadFusion
from hvp_engine.problem import batches
from hvp_engine.problem.objective import Objective
from hvp_engine.system import memory
from hvp_engine.system.formatting import first_line
from hvp_engine.system.memory import is_out_of_memory

log = logging.getLogger(__name__)

_TOLERANCE = {"float64": 1e-3, "float32": 0.2}
# Relative to ||theta||. The large ones are for models that compute a part in float32 whatever they are given.
_STEPS = {torch.float64: (1e-6, 1e-5, 1e-7, 1e-4, 1e-3), torch.float32: (1e-3, 1e-2, 1e-4)}
_ROUNDING = 100  # curvature below this many roundings of the whole Hessian's counts as none
_SIGNIFICANT = 4.0  # times the unevenness of the gradient over a step

T = TypeVar("T")


@dataclass(frozen=True)
class Verification:
    """What the checks measured, as relative errors; nan where a test does not apply (no curvature).

    Attributes:
        dtype: Arithmetic of the checks, "float64" or "float32".
        asymmetry: abs(u'Hv - v'Hu) / ||Hv|| with a random unit vector v and u = Hv / ||Hv||.
        finite_difference: ||(difference of gradients) - Hv|| / ||Hv||.
        curvature: ||Hv||; 0 where it is no more than rounding.
    """

    dtype: str
    asymmetry: float
    finite_difference: float
    curvature: float

    @property
    def wrong(self) -> bool:
        """Whether one of the errors is beyond what rounding and kinks explain."""
        tolerance = _TOLERANCE[self.dtype]
        return self.asymmetry > tolerance or self.finite_difference > tolerance


class DerivativeCheck:
    """Tests of Hessian blocks at a few samples; the graph of the gradient is built once for all blocks."""

    def __init__(self, objective: Objective, names: tuple[str, ...], batch: Any) -> None:
        """Build the graph.

        Args:
            objective: Loss and model, in the arithmetic of the test.
            names: The parameters that blocks touch.
            batch: A few samples on the model's device.

        Raises:
            HvpEngineError: The loss cannot be evaluated or has no gradient.
        """
        self._objective = objective
        self._parameters = {name: objective.parameters[name] for name in names}
        self._batch = batch
        parts = tuple(BlockPart(name, None, p.shape, p.numel()) for name, p in self._parameters.items())
        self.union = ResolvedBlock("union of all blocks", parts, sum(part.numel for part in parts))
        with objective.arithmetic():
            with memory.saved_dtypes() as dtypes:
                HeadFusion(objective, batch)  # as the job's products are formed
                self._graph = GradientGraph(*objective.evaluate(batch), self._parameters)
            # A model may compute a part in float32 whatever it is given.
            exact = float(torch.finfo(objective.dtype).eps)
            self._eps = float(torch.finfo(torch.float32).eps) if torch.float32 in dtypes else exact
            self._gradient_norm = float(self._graph.gradient(self.union).norm())
        norms = [parameter.detach().norm() for parameter in self._parameters.values()]
        self._scale = max(float(torch.stack(norms).norm()), 1e-3)

    def measure(self, block: ResolvedBlock, curvature: float = 0.0) -> Verification:
        """Test one diagonal block of the Hessian.

        Args:
            block: The block; its parameters are among those given.
            curvature: That of the union of all blocks, which says how much of this block's is rounding.

        Raises:
            SecondDerivativeError: An operation has no second derivative, or it is not finite.
        """
        objective = self._objective
        floor = _ROUNDING * self._eps * curvature
        v = probe(0, "verify", 0, block.numel, "gaussian", objective.dtype).to(objective.device)
        hv, hu = (torch.zeros(block.numel, dtype=objective.dtype, device=objective.device) for _ in range(2))
        with objective.arithmetic():
            self._graph.product(block, v[None], hv[None], batched=False)
            norm = float(hv.norm())
            if not math.isfinite(norm):
                raise SecondDerivativeError(not_finite(f"of {block.name!r}"))
            # With u = Hv / ||Hv||, u'(Hv) = ||Hv|| must equal v'(Hu); for two random vectors both would be near zero.
            asymmetry = float("nan")
            if norm > floor:
                self._graph.product(block, (hv / norm)[None], hu[None], batched=False)
                asymmetry = abs(norm - float(v @ hu)) / norm
            del hu  # as long as all parameters, in float64: the differences need room for as much
            difference = self._difference(block, v, hv, floor)
        dtype = str(objective.dtype).removeprefix("torch.")
        return Verification(dtype, asymmetry, difference, norm if norm > floor else 0.0)

    def _difference(self, block: ResolvedBlock, direction: Tensor, product: Tensor, floor: float) -> float:
        """Find the smallest relative deviation of central differences from the product over a few step lengths.

        A deviation counts where it exceeds the unevenness of the gradient over the step, g(h) - 2 g(0) + g(-h): kinks
        and rounding show there as much as in the deviation, a wrong product does not.
        """
        dtype = self._objective.dtype
        tolerance = _TOLERANCE[str(dtype).removeprefix("torch.")]
        middle = self._graph.gradient(block)
        # Each entry moves as far in a small block as in a large one.
        scale = self._scale * math.sqrt(block.numel / self.union.numel)
        names = dict.fromkeys(part.parameter for part in block.parts)
        saved = {name: self._parameters[name].detach().clone() for name in names}
        best = float("inf")
        try:
            for relative in _STEPS[dtype]:
                h = relative * scale
                ahead, behind = (self._moved_gradient(block, saved, direction, step) for step in (h, -h))
                difference = (ahead - behind).div_(2 * h)
                unevenness = float(ahead.add_(behind).sub_(middle, alpha=2).norm())
                del ahead, behind
                noise = float(torch.finfo(dtype).eps) * self._gradient_norm / h  # rounding: less cannot be tested
                norm = max(float(product.norm()), float(difference.norm()))
                if norm <= max(100 * noise, floor):
                    continue
                deviation = float(difference.sub_(product).norm()) / norm
                unevenness /= 2 * h * norm
                if deviation < tolerance or deviation > _SIGNIFICANT * unevenness:
                    best = min(best, deviation)
                if best < tolerance:
                    break
        finally:
            for name, origin in saved.items():
                self._parameters[name].data.copy_(origin)
        return best if math.isfinite(best) else float("nan")

    def _moved_gradient(self, block: ResolvedBlock, saved: dict[str, Tensor], direction: Tensor, step: float) -> Tensor:
        """Compute the gradient of the block at the saved parameters plus a step along a direction, flat."""
        # Through .data: the graph of the gradient stays valid once the parameters are back.
        for name, origin in saved.items():
            self._parameters[name].data.copy_(origin)
        for part, piece in zip(block.parts, block.split(direction), strict=True):
            target = self._parameters[part.parameter].data
            index = ... if part.index is None else part.index
            target[index] = target[index] + step * piece
        total, _ = self._objective.evaluate(self._batch)
        found = backward([total], [self._parameters[name] for name in saved], None)
        del total
        gradients = dict(zip(saved, found, strict=True))
        return torch.cat(
            [
                part.take(torch.zeros_like(saved[part.parameter]) if g is None else g).reshape(-1)
                for part in block.parts
                for g in [gradients[part.parameter]]
            ]
        )


def verify(objective: Objective, partition: Partition, batch: Any) -> Verification:
    """Check the second derivative on a few samples of a batch.

    Args:
        objective: The job's objective.
        partition: The job's blocks; their union is checked.
        batch: A batch on the model's device.

    Returns:
        The measured errors.

    Raises:
        SecondDerivativeError: The Hessian is not symmetric or contradicts the gradient.
    """

    def measure_union(widened: Objective, piece: Any) -> Verification:
        test = DerivativeCheck(widened, partition.parameters, piece)
        return test.measure(test.union)

    result = in_widest_arithmetic(objective, batch, measure_union)
    if result.wrong:
        raise SecondDerivativeError(
            f"The second derivative of this model is wrong without an error message: {describe(result)}. "
            "Some operation's backward pass is not itself differentiated (fused or compiled kernels such as Liger's or "
            "Apex's, a custom autograd.Function that is once_differentiable or saves results computed in forward, "
            ".data or detach() inside the model). hvp_engine.doctor names the suspects; replace them by plain PyTorch "
            "operations. check=False skips this test."
        )
    return result


def describe(measured: Verification) -> str:
    """Put the errors in words."""
    return (
        f"asymmetry {measured.asymmetry:.2g}, relative deviation from finite differences of the gradient "
        f"{measured.finite_difference:.2g}"
    )


def in_widest_arithmetic(objective: Objective, batch: Any, use: Callable[[Objective, Any], T]) -> T:
    """Call ``use`` with the objective in float64, or else float32, and with few samples, or else the whole batch.

    Args:
        objective: Loss and model.
        batch: A batch on the model's device.
        use: Called with the converted objective and the samples; what it returns is passed on.

    Raises:
        SecondDerivativeError: From ``use``, or because it fails in every arithmetic.
    """
    failures: list[Exception] = []
    for precision in ("fp64", "fp32"):
        # A mean over few samples may have all targets ignored; the whole batch tells then.
        for piece in (batches.few_samples(batch), batch):
            data = None if objective.data is None else [piece]
            try:
                widened = Objective(objective.model, objective.loss, data, precision)
                return use(widened, _converted(piece, widened.dtype))
            except Exception as error:
                final = isinstance(error, SecondDerivativeError) and not isinstance(error, BackwardError)
                if final or is_out_of_memory(error):
                    raise
                # Not every model runs in float64 (custom kernels, float32 tensors held by the loss).
                log.info("second derivative not checked in %s: %s", precision, error)
                failures.append(error)
    raise SecondDerivativeError(
        "The second derivative of this model cannot be checked: the passes over the first batch fail in float64 and in "
        f"float32 ({first_line(failures[-1])}). Mend the model or the loss, or pass check=False to go without the test."
    ) from failures[-1]


def _converted(batch: Any, dtype: torch.dtype) -> Any:
    return batches.map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, batch)
