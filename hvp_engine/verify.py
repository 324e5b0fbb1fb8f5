"""Does the second derivative that autograd gives agree with the gradient it gives? Checked before hours of work.

Two tests on a small piece of the data: symmetry, u'(Hv) = v'(Hu), which a backward pass that forgets a path breaks; and
central differences of the gradient, (g(theta + h v) - g(theta - h v)) / 2h against Hv, which catches what is symmetric
and still wrong. Both run on a float64 copy of the model where it can be made: a step of 1e-6 then leaves neither
rounding errors nor, in practice, kinks of piecewise linear activations between the two points.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvp_engine import batches
from hvp_engine.blocks import Part, Partition, ResolvedBlock
from hvp_engine.errors import HvpEngineError, SecondDerivativeError
from hvp_engine.head import fuse_head
from hvp_engine.krylov.probes import probe
from hvp_engine.objective import Objective
from hvp_engine.operators.gradient_graph import GradientGraph

log = logging.getLogger(__name__)

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 0.2}
_STEPS = {torch.float64: (1e-6, 1e-5, 1e-7), torch.float32: (1e-3, 1e-2, 1e-4)}  # relative to ||theta||


@dataclass(frozen=True)
class Verification:
    """What the checks measured, as relative errors; nan where a test does not apply (no curvature).

    Attributes:
        dtype: Arithmetic of the checks, "float64" or "float32".
        asymmetry: abs(u'Hv - v'Hu) / ||Hv|| with a random unit vector v and u = Hv / ||Hv||.
        finite_difference: ||(difference of gradients) - Hv|| / ||Hv||.
    """

    dtype: str
    asymmetry: float
    finite_difference: float


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
    for precision in ("fp64", "fp32"):
        # A mean over few samples may have all targets ignored; the whole batch tells then.
        for piece in (batches.few_samples(batch), batch):
            data = None if objective.data is None else [piece]
            try:
                return _verify(Objective(objective.model, objective.loss, data, precision), partition, piece)
            except SecondDerivativeError:
                raise
            except (HvpEngineError, RuntimeError, TypeError) as error:
                # Not every model runs in float64 (custom kernels, float32 tensors held by the loss).
                log.info("second derivative not checked in %s: %s", precision, error)
    raise SecondDerivativeError(
        "The second derivative of this model cannot be checked: the loss fails on the first batch in float64 and in "
        "float32. Mend the loss, or pass check=False to go without the test."
    )


def _verify(objective: Objective, partition: Partition, batch: Any) -> Verification:
    parameters = {name: objective.parameters[name] for name in partition.parameters}
    parts = tuple(Part(name, None, p.shape, p.numel()) for name, p in parameters.items())
    union = ResolvedBlock("union of all blocks", parts, sum(part.numel for part in parts))
    v = probe(0, "verify", 0, union.numel, "gaussian", objective.dtype).to(objective.device)
    if batch is not None:
        batch = batches.map_tensors(lambda t: t.to(objective.dtype) if t.is_floating_point() else t, batch)
    fuse_head(objective, batch)
    with objective.arithmetic():
        graph = GradientGraph(*objective.evaluate(batch), parameters)
        hv, hu = (torch.zeros(union.numel, dtype=objective.dtype, device=objective.device) for _ in range(2))
        graph.product(union, v[None], hv[None], batched=False)
        norm = float(hv.norm())
        if not math.isfinite(norm):
            raise SecondDerivativeError(
                "The Hessian-vector product of this model is not finite: an operation's second derivative is infinite "
                "or not a number at these parameters (sqrt or norm at zero, log of zero); add a small epsilon to it."
            )
        # With u = Hv / ||Hv||, u'(Hv) = ||Hv|| must equal v'(Hu); for two random vectors both would be near zero.
        asymmetry = float("nan")
        if norm > 0:
            graph.product(union, (hv / norm)[None], hu[None], batched=False)
            asymmetry = abs(norm - float(v @ hu)) / norm
        gradient_norm = float(graph.gradient(union).norm())
        del graph
        difference = _difference(objective, parameters, union, batch, v, hv, gradient_norm)
    result = Verification(str(objective.dtype).removeprefix("torch."), asymmetry, difference)
    tolerance = _TOLERANCE[objective.dtype]
    if asymmetry > tolerance or difference > tolerance:
        raise SecondDerivativeError(
            f"The second derivative of this model is wrong without an error message: asymmetry {asymmetry:.2g}, "
            f"relative deviation from finite differences of the gradient {difference:.2g}. Some operation's backward "
            "pass is not itself differentiated (fused or compiled kernels such as Liger's or Apex's, a custom "
            "autograd.Function that is once_differentiable or saves results computed in forward, .data or "
            "detach() inside the model). Replace it by plain PyTorch operations; check=False skips this test."
        )
    return result


def _difference(
    objective: Objective,
    parameters: dict[str, torch.nn.Parameter],
    union: ResolvedBlock,
    batch: Any,
    direction: Tensor,
    product: Tensor,
    gradient_norm: float,
) -> float:
    """Smallest relative deviation of central differences from the product over a few step lengths."""
    saved = [parameter.detach().clone() for parameter in parameters.values()]
    scale = max(float(torch.stack([p.norm() for p in saved]).norm()), 1e-3)
    eps = float(torch.finfo(objective.dtype).eps)
    best = float("inf")

    def gradient_at(h: float) -> Tensor:
        with torch.no_grad():
            for parameter, origin, piece in zip(parameters.values(), saved, union.split(direction), strict=True):
                parameter.copy_(origin + h * piece)
        total, _ = objective.evaluate(batch)
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        flat = [
            torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
            for g, p in zip(gradients, saved, strict=True)
        ]
        return torch.cat(flat)

    try:
        for relative in _STEPS[objective.dtype]:
            h = relative * scale
            difference = (gradient_at(h) - gradient_at(-h)) / (2 * h)
            noise = eps * gradient_norm / h  # rounding of the gradients: curvature below it cannot be tested
            norm = max(float(product.norm()), float(difference.norm()))
            if norm <= 100 * noise:
                continue
            best = min(best, float((difference - product).norm()) / norm)
            if best < _TOLERANCE[objective.dtype]:
                break
    finally:
        with torch.no_grad():
            for parameter, origin in zip(parameters.values(), saved, strict=True):
                parameter.copy_(origin)
    return best if math.isfinite(best) else float("nan")
