"""Does the second derivative that autograd gives agree with the gradient it gives?

Two tests on a piece of the data: symmetry, u'(Hv) = v'(Hu), which a backward pass that forgets a path breaks; and
central differences of the gradient, (g(theta + h v) - g(theta - h v)) / 2h against Hv, which catches what is symmetric
and still wrong. Differences are evidence only where those of two step lengths agree with each other: a kink at the very
point (an absolute value at zero, a tie of maxima) and rounding give others for every length. What cannot be told at the
parameters themselves for that reason is tested a little beside them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvp_engine.blocks import BlockPart, ResolvedBlock
from hvp_engine.errors import SecondDerivativeError, not_finite
from hvp_engine.krylov.probes import probe
from hvp_engine.operators.autograd_nodes import nodes_behind
from hvp_engine.operators.backward import backward
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.head.fusion import HeadFusion
from hvp_engine.operators.inspection import Suspect, custom_functions, refuse_known_wrong
from hvp_engine.operators.padding import padding_rows
from hvp_engine.problem.objective import Objective
from hvp_engine.system.measured_graph import build_and_list_dtypes

_TOLERANCE = {"float64": 1e-3, "float32": 0.2, "half": 0.3}
# Relative to ||theta||. The large ones are for models that compute a part in float32 whatever they are given, the small
# ones for so many kinks that larger steps cross some on every side.
_STEPS = {
    "float64": (1e-6, 1e-5, 1e-7, 1e-8, 1e-4, 1e-3, 1e-9),
    "float32": (1e-3, 3e-3, 1e-2, 3e-4, 1e-4),
    "half": (3e-2, 1e-1, 1e-2),
}
_ROUNDING = 100  # curvature below this many roundings of the whole Hessian's counts as none
_LARGEST_FLOOR = 0.01
_SIGNIFICANT = 4.0  # times the unevenness of the gradient over a step, and the change from one step length to another
_BESIDE = 1e-3  # relative to each parameter's size: how far a point without the kinks of the first one is
_UNSTABLE = 0.05  # relative change of a product under roundings of the parameters that shows it to be rounding itself


@dataclass(frozen=True)
class Verification:
    """What the checks measured, as relative errors; nan where a test does not apply (no curvature).

    Attributes:
        dtype: Arithmetic of the checks, "float64" or "float32"; "half" where the model computes a part in bfloat16 or
            float16 whatever it is given.
        asymmetry: abs(u'Hv - v'Hu) / ||Hv|| with a random unit vector v and u = Hv / ||Hv||; -v'Hv / ||Hv|| where that
            is more and the matrix has no negative eigenvalues.
        finite_difference: ||(difference of gradients) - Hv|| / ||Hv||; of a matrix that is a part of the Hessian, the
            other part is added to its product.
        curvature: ||Hv||; 0 where it is no more than rounding.
        noise: ||error|| / ||Hv|| of one product in the job's own arithmetic; nan where only checks were made.
    """

    dtype: str
    asymmetry: float
    finite_difference: float
    curvature: float
    noise: float = math.nan

    @property
    def wrong(self) -> bool:
        """Whether one of the errors is beyond what rounding and kinks explain."""
        tolerance = _TOLERANCE[self.dtype]
        return self.asymmetry > tolerance or self.finite_difference > tolerance


class DerivativeCheck:
    """Tests of Hessian blocks on a piece of the data; the graph of the gradient is built once for all blocks.

    Attributes:
        union: All blocks as one.
        suspects: The custom autograd functions that the loss went through, and where its graph was cut.
        eps: Relative spacing of the coarsest numbers that take part.
    """

    def __init__(
        self,
        objective: Objective,
        names: tuple[str, ...],
        batch: Any,
        graph: type[GradientGraph] = GradientGraph,
    ) -> None:
        """Build the graph.

        Args:
            objective: Loss and model, in the arithmetic of the test.
            names: The parameters that blocks touch.
            batch: Samples on the model's device.
            graph: Multiplies by the matrix that is tested.

        Raises:
            HvpEngineError: The loss cannot be evaluated or has no gradient.
        """
        self._objective = objective
        self._parameters = objective.parameters_named(names)
        self._batch = batch
        self._kind = graph
        parts = tuple(BlockPart(name, None, p.shape, p.numel()) for name, p in self._parameters.items())
        self.union = ResolvedBlock("union of all blocks", parts, sum(part.numel for part in parts))
        with objective.arithmetic():
            HeadFusion(objective, batch)  # as the job's products are formed
            self._graph, dtypes = build_and_list_dtypes(self._build, lambda graph: graph.gradients.values())
            # A model may compute a part in float32 or bfloat16 whatever it is given.
            own = str(objective.dtype).removeprefix("torch.")
            self._arithmetic = "half" if dtypes & {torch.bfloat16, torch.float16} else own
            self.eps = max(float(torch.finfo(dtype).eps) for dtype in {objective.dtype, *dtypes})
            self._gradient_norm = float(self._graph.gradient(self.union).norm())
        norms = [parameter.detach().norm() for parameter in self._parameters.values()]
        self._scale = max(float(torch.stack(norms).norm()), 1e-3)

    def direction(self, block: ResolvedBlock) -> Tensor:
        """Draw the direction (numel,) in which a block is tested; zero where no gradient goes by design."""
        v = probe(0, "verify", 0, block.numel, "gaussian", self._objective.dtype).to(self._objective.device)
        return self._masked(block, v)

    def product(self, block: ResolvedBlock, vector: Tensor) -> Tensor:
        """Multiply a diagonal block by a vector (numel,), both without what no gradient goes to by design."""
        with self._objective.arithmetic():
            return self._product(self._graph, block, vector)

    def _build(self) -> GradientGraph:
        total, weight = self._objective.evaluate(self._batch, (0, 0, 0))  # under a key, so that it is watched
        nodes = nodes_behind([total])
        for node in nodes:
            refuse_known_wrong(node)
        self.suspects: set[Suspect] = {*custom_functions(nodes), *self._objective.cuts}
        self._padding = padding_rows(nodes, self._parameters)
        del nodes
        return self._kind(total, weight, self._parameters)

    def measure(self, block: ResolvedBlock, curvature: float = 0.0) -> Verification:
        """Test one diagonal block of the Hessian.

        Args:
            block: The block; its parameters are among those given.
            curvature: That of the union of all blocks, which says how much of this block's is rounding.

        Returns:
            The errors; nan, and no curvature, where the curvature is no more than rounding.

        Raises:
            SecondDerivativeError: An operation has no second derivative, or it is not finite.
        """
        floor = min(_ROUNDING * self.eps, _LARGEST_FLOOR) * curvature
        dtype = self._arithmetic
        with self._objective.arithmetic():
            v = self.direction(block)
            hv = self._product(self._graph, block, v)
            norm = float(hv.norm())
            if not math.isfinite(norm):
                raise SecondDerivativeError(not_finite(f"of {block.name!r}"))
            # With u = Hv / ||Hv||, u'(Hv) = ||Hv|| must equal v'(Hu); for two random vectors both would be near zero.
            asymmetry = float("nan")
            if norm > floor:
                asymmetry = abs(norm - float(v @ self._product(self._graph, block, hv / norm))) / norm
                if self._kind.semidefinite:
                    asymmetry = max(asymmetry, -float(v @ hv) / norm)
                if asymmetry > _TOLERANCE[dtype] and self._is_rounding(block, v, hv):
                    return Verification(dtype, float("nan"), float("nan"), 0.0)
            derivative = self._derivative(self._graph, block, v) if self._kind.is_part else hv
            difference, unclear = self._difference(self._graph, block, v, derivative, floor)
            if unclear:
                with self._beside(_BESIDE):
                    graph = self._rebuilt()
                    difference, _ = self._difference(graph, block, v, self._derivative(graph, block, v), floor)
        return Verification(dtype, asymmetry, difference, norm if norm > floor else 0.0)

    def _product(self, graph: GradientGraph, block: ResolvedBlock, vector: Tensor) -> Tensor:
        out = torch.zeros_like(vector)
        graph.product(block, vector[None], out[None], batched=False)
        return self._masked(block, out)

    def _derivative(self, graph: GradientGraph, block: ResolvedBlock, vector: Tensor) -> Tensor:
        """Differentiate the block's gradient along a vector, by the passes of which the product is made."""
        out = torch.zeros_like(vector)
        graph.derivative(block, vector, out)
        return self._masked(block, out)

    def _masked(self, block: ResolvedBlock, vector: Tensor) -> Tensor:
        """Set what belongs to rows of padding to zero, in place."""
        if any(part.parameter in self._padding for part in block.parts):
            for part, piece in zip(block.parts, block.split(vector), strict=True):
                rows = self._padding.get(part.parameter)
                if rows is not None:
                    kept = torch.ones(self._parameters[part.parameter].shape, dtype=vector.dtype, device=vector.device)
                    kept[rows] = 0
                    piece.mul_(part.take(kept))
        return vector

    def _rebuilt(self) -> GradientGraph:
        return self._kind(*self._objective.evaluate(self._batch), self._parameters)

    def _is_rounding(self, block: ResolvedBlock, direction: Tensor, product: Tensor) -> bool:
        """Say whether a product is another one as soon as the parameters are rounded differently."""
        with self._beside(4 * self.eps):
            moved = self._product(self._rebuilt(), block, direction)
        return float((moved - product).norm()) > _UNSTABLE * float(product.norm())

    @contextlib.contextmanager
    def _beside(self, distance: float) -> Iterator[None]:
        """Move every parameter by random numbers of a size relative to its own, and back at the end."""
        with self._restored(self._parameters):
            for number, parameter in enumerate(self._parameters.values()):
                length = max(float(parameter.detach().norm()), 1e-3 * self._scale)
                noise = probe(1, "beside", number, parameter.numel(), "gaussian", parameter.dtype)
                parameter.data.add_(noise.to(parameter.device).view_as(parameter), alpha=distance * length)
            yield

    @contextlib.contextmanager
    def _restored(self, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """Let some parameters be written to: clones stand in for their content, which is yielded, until the end."""
        saved = {name: self._parameters[name].data for name in names}
        try:
            for name, origin in saved.items():
                self._parameters[name].data = origin.clone()
            yield saved
        finally:
            try:
                self._put_back(saved)
            except BaseException:  # Ctrl-C: from the beginning
                self._put_back(saved)
                raise

    def _put_back(self, saved: dict[str, Tensor]) -> None:
        for name, origin in saved.items():
            self._parameters[name].data = origin

    def _difference(
        self, graph: GradientGraph, block: ResolvedBlock, direction: Tensor, product: Tensor, floor: float
    ) -> tuple[float, bool]:
        """Find the smallest relative deviation of central differences from the product over a few step lengths.

        A deviation counts where it exceeds the unevenness of the gradient over the step, g(h) - 2 g(0) + g(-h), and
        what another step length changes: kinks and rounding show there as much as in the deviation, a wrong product
        does not.

        Returns:
            The deviation, nan where there is none to tell, and whether kinks or rounding hid it.
        """
        dtype = self._objective.dtype
        tolerance = _TOLERANCE[self._arithmetic]
        middle = self._masked(block, graph.gradient(block))
        # Each entry moves as far in a small block as in a large one.
        scale = self._scale * math.sqrt(block.numel / self.union.numel)
        best, unclear = float("inf"), False
        other: Tensor | None = None  # the differences of the step length before
        with self._restored(dict.fromkeys(part.parameter for part in block.parts)) as saved:
            for relative in _STEPS[self._arithmetic]:
                h = relative * scale
                ahead, behind = (self._moved_gradient(block, saved, direction, step) for step in (h, -h))
                difference = (ahead - behind).div_(2 * h)
                unevenness = float(ahead.add_(behind).sub_(middle, alpha=2).norm())
                del ahead, behind
                noise = float(torch.finfo(dtype).eps) * self._gradient_norm / h  # rounding: less cannot be tested
                norm = max(float(product.norm()), float(difference.norm()))
                if norm <= max(100 * noise, floor):
                    continue
                deviation = float((difference - product).norm()) / norm
                if deviation < tolerance:
                    return deviation, False
                unclear = True
                change = math.inf if other is None else float((difference - other).norm()) / norm
                if deviation > _SIGNIFICANT * max(unevenness / (2 * h * norm), change):
                    best = min(best, deviation)
                other = difference
        return (best, False) if math.isfinite(best) else (float("nan"), unclear)

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
        flat = torch.cat(
            [
                part.take(torch.zeros_like(saved[part.parameter]) if g is None else g).reshape(-1)
                for part in block.parts
                for g in [gradients[part.parameter]]
            ]
        )
        return self._masked(block, flat)
