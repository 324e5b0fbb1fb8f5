"""The test of the second derivative before hours of work: on a piece of the job's data, in the widest arithmetic.

It runs on a float64 copy of the model where that can be made, in which differences of gradients leave neither rounding
errors nor, in practice, kinks between two points. A copy may compute something else than the job does (another path for
another dtype, another kernel), so the job's own product is compared with the copy's, and tested by itself where they
differ. How far apart they are is the noise of a product: what no Lanczos recurrence can see through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hvp_engine.blocks import Partition
from hvp_engine.errors import BackendError, BackwardError, SecondDerivativeError
from hvp_engine.operators.derivative_check import DerivativeCheck, Verification
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.inspection import Suspect
from hvp_engine.problem import batches
from hvp_engine.problem.cuts import Cut
from hvp_engine.problem.objective import Objective
from hvp_engine.problem.precision import Precision, rounding
from hvp_engine.scheduling.checked import CheckedSizes, choose_samples_to_check, is_checked_in_float64, unmixed
from hvp_engine.scheduling.scheduler import Scheduler
from hvp_engine.system.failures import is_device_failure, is_out_of_memory, let_go
from hvp_engine.system.formatting import first_line, first_names

log = logging.getLogger(__name__)

# How far the job's product may be from float64's before it is tested by itself: more than rounding explains.
_ROUNDINGS: dict[Precision, float] = {"fp64": 1e-3, "fp32": 0.05, "tf32": 0.3, "bf16": 0.5}
# Errors of products in units of rounding, in float32 as in bfloat16: 0.5 to 3 for whole networks, 6 for single blocks.
_NOISE = 4.0

T = TypeVar("T")


def product_noise(record: Mapping[str, Any] | None, precision: Precision) -> float:
    """Return the relative error of one product: as it was measured, or else what rounding makes likely.

    Args:
        record: A :class:`Verification` as plain data; None where nothing was tested.
        precision: Arithmetic of the products.
    """
    measured: float | None = (record or {}).get("noise")  # None where it was not finite, or an earlier version tested
    return _NOISE * rounding(precision) if measured is None else measured


class ChosenCheck(NamedTuple):
    """How much is tested, and how.

    Attributes:
        pieces: Samples, see :func:`verify`.
        widest: Whether in float64.
    """

    pieces: list[Any]
    widest: bool


def choose_check(
    objective: Objective,
    partition: Partition,
    batch: Any,
    scheduler: Scheduler,
    products: Mapping[str, int],
) -> ChosenCheck:
    """Choose as much of a micro-batch, and as wide an arithmetic, as a job can afford to test.

    Args:
        objective: The job's objective.
        partition: Its blocks.
        batch: The micro-batch.
        scheduler: Knows its graph's size, and the bytes for everything.
        products: How many products of each block the job will ask for.
    """
    sizes, budget = checked_sizes(objective, partition, batches.samples(batch), scheduler), scheduler.plan.budget
    count = choose_samples_to_check(sizes, budget, sum(products.values()))
    pieces = [batch] if count == sizes.samples or count is None else [batches.cut(batch, 0, count), batch]
    return ChosenCheck(pieces, is_checked_in_float64(sizes, budget))


def checked_sizes(
    objective: Objective, partition: Partition, samples: int | None, scheduler: Scheduler
) -> CheckedSizes:
    """Read off an objective what the test of its second derivative is made of."""
    vector = sum(parameter.nbytes for parameter in objective.parameters_named(partition.parameters).values())
    held = (*objective.model.parameters(), *objective.model.buffers())
    copy = 0 if objective.precision == "fp64" else sum(8 * t.numel() for t in held if t.is_floating_point())
    transients = scheduler.transient_in(objective.dtype), scheduler.transient_in(torch.float64)
    graph_bytes = unmixed(scheduler.plan.graph_bytes, objective.precision)
    return CheckedSizes(samples, graph_bytes, vector, copy, *transients)


def verify(
    objective: Objective,
    names: tuple[str, ...],
    pieces: list[Any],
    suspects: Iterable[Suspect] = (),
    graph: type[GradientGraph] = GradientGraph,
    *,
    widest: bool = True,
) -> tuple[Verification, set[Suspect]]:
    """Check the second derivative with respect to some parameters.

    Args:
        objective: The job's objective.
        names: The parameters.
        pieces: Samples on the model's device; the next ones serve where the loss of those before is not defined.
        suspects: Custom autograd functions, and places that cut the graph, that must take part.
        graph: Multiplies by the matrix that is tested.
        widest: Whether there is memory for float64.

    Returns:
        The measured errors with the noise of a product, and the custom functions and places that took part.

    Raises:
        SecondDerivativeError: The Hessian is not symmetric or contradicts the gradient, or that cannot be tested.
        OutOfMemoryError, torch.OutOfMemoryError or RuntimeError: The test does not fit into memory.
    """

    def measure_union(test: DerivativeCheck, piece: Any) -> tuple[Verification, set[Suspect]]:
        measured = test.measure(test.union)
        if measured.wrong:
            raise SecondDerivativeError(_wrong(measured, test.suspects))
        if not measured.curvature:
            log.info("second derivative not tested: the curvature of these samples is no more than rounding")
        taking_part = set(test.suspects)
        # What the reference itself is rounded to, as a part may be whatever the model is given, no comparison shows.
        noise = _NOISE * test.eps
        if measured.dtype == "float64" and objective.precision != "fp64":
            product = test.product(test.union, test.direction(test.union))
            found, difference = _compare_with_job(objective, names, piece, product, graph)
            taking_part &= found
            noise = max(noise, difference)
        else:
            noise = max(noise, product_noise(None, objective.precision))
        return replace(measured, noise=noise), taking_part

    return in_widest_arithmetic(objective, names, pieces, measure_union, suspects, graph, widest=widest)


def describe(measured: Verification) -> str:
    """Put the errors in words."""
    return (
        f"asymmetry {measured.asymmetry:.2g}, relative deviation from finite differences of the gradient "
        f"{measured.finite_difference:.2g}"
    )


def in_widest_arithmetic(
    objective: Objective,
    names: tuple[str, ...],
    pieces: list[Any],
    use: Callable[[DerivativeCheck, Any], T],
    suspects: Iterable[Suspect] = (),
    graph: type[GradientGraph] = GradientGraph,
    *,
    widest: bool = True,
) -> T:
    """Call ``use`` with a check in float64, or else in float32, on the first piece of the data that defines a loss.

    Args:
        objective: Loss and model.
        names: The parameters that are checked.
        pieces: Samples on the model's device, see :func:`verify`.
        use: Called with the check and its piece; what it returns is passed on.
        suspects: Custom functions, and places that cut the graph, without which a check tells nothing.
        graph: Multiplies by the matrix that is tested.
        widest: Whether there is memory for float64.

    Raises:
        SecondDerivativeError: From ``use``, or because it or the passes fail in every arithmetic.
    """
    needed = set(suspects)
    failure: Exception | None = None
    arithmetics: tuple[Precision, ...] = ("fp64", "fp32") if widest or objective.precision == "fp64" else ("fp32",)
    for precision in arithmetics:
        for piece in pieces:
            try:
                return _used(objective, names, piece, precision, use, needed, graph)
            except _OtherPathError as error:
                failure = SecondDerivativeError(f"in {precision} the model does not run {_called(error.missing)}")
                break
            except Exception as error:
                if isinstance(error, SecondDerivativeError) and not isinstance(error, BackwardError):
                    raise
                if is_device_failure(error):
                    raise
                # Not every model runs in float64 (custom kernels, float32 tensors held by the loss).
                log.info("second derivative not checked in %s: %s", precision, error)
                failure = error
            let_go(failure)  # the next attempt needs the memory of this one
    assert failure is not None
    if isinstance(failure, (BackwardError, BackendError)) or is_out_of_memory(failure):  # as the job would fail
        raise failure
    raise SecondDerivativeError(
        "The second derivative of this model cannot be checked: the passes over a batch fail in float64 and in float32 "
        f"({first_line(failure)}). Mend the model or the loss, or pass check=False to slq to go without the test."
    ) from failure


class _OtherPathError(Exception):
    """In some arithmetic a model takes another path than the one that is to be checked, without what is missing."""

    def __init__(self, missing: set[Suspect]) -> None:
        super().__init__()
        self.missing = missing


def _used(
    objective: Objective,
    names: tuple[str, ...],
    piece: Any,
    precision: Precision,
    use: Callable[[DerivativeCheck, Any], T],
    needed: set[Suspect],
    graph: type[GradientGraph],
) -> T:
    """Make one attempt, see :func:`in_widest_arithmetic`; nothing of it lives on where it fails.

    Raises:
        _OtherPathError: Something of what is needed takes no part in this arithmetic.
    """
    test = _check(objective, names, piece, precision, graph)
    missing = needed - test.suspects
    if missing:
        raise _OtherPathError(missing)
    return use(test, piece)


def _check(
    objective: Objective, names: tuple[str, ...], piece: Any, precision: Precision, graph: type[GradientGraph]
) -> DerivativeCheck:
    data = None if objective.data is None else [piece]
    own = Objective(objective.model, objective.loss, data, precision)
    own.fused.hidden_rows_are_constant = True
    own.head_room = objective.head_room
    batch = piece if precision == objective.precision else _converted(piece, own.dtype)
    return DerivativeCheck(own, names, batch, graph)


def _compare_with_job(
    objective: Objective, names: tuple[str, ...], piece: Any, expected: Tensor, graph: type[GradientGraph]
) -> tuple[set[Suspect], float]:
    """Compare the product in the job's own arithmetic with that in float64, and test it by itself if they differ.

    Returns:
        The custom functions and places that take part in the job, and the relative difference of the products.

    Raises:
        SecondDerivativeError: They differ, and the job's own contradicts its gradient.
    """
    test = _check(objective, names, piece, objective.precision, graph)
    product = test.product(test.union, test.direction(test.union)).double()
    norm = max(float(expected.norm()), float(product.norm()))
    difference = float((product - expected).norm()) / norm if norm else 0.0
    if difference > _ROUNDINGS[objective.precision]:
        measured = test.measure(test.union)
        if measured.wrong:
            raise SecondDerivativeError(_wrong(measured, test.suspects))
        log.warning(
            "the product in %s differs by %.2g from that in float64: rounding, or the model computes something else",
            objective.precision,
            difference,
        )
    return test.suspects, difference


def _wrong(measured: Verification, suspects: Iterable[Suspect]) -> str:
    named = sorted(suspect.__qualname__ for suspect in suspects if not isinstance(suspect, Cut))
    found = f"; this model's are {', '.join(named)}" if named else ""
    places = sorted(str(suspect) for suspect in suspects if isinstance(suspect, Cut))
    cuts = f" (here: {first_names(places)})" if places else ""
    return (
        f"The second derivative of this model is wrong without an error message: {describe(measured)}. "
        "Some operation's backward pass is not itself differentiated (fused or compiled kernels such as Liger's or "
        "Apex's, a custom autograd.Function that is once_differentiable or saves results computed in forward"
        f"{found}), or a value is cut out of the graph, by .data, detach(), item() or no_grad in the model or the loss"
        f"{cuts}. hvp_engine.doctor names the suspects; replace them by plain PyTorch operations, and give what is "
        "meant to be constant with the data. check=False of slq skips this test."
    )


def _called(suspects: Iterable[Suspect]) -> str:
    return ", ".join(sorted(str(s) if isinstance(s, Cut) else s.__qualname__ for s in suspects))


def _converted(batch: Any, dtype: torch.dtype) -> Any:
    return batches.map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, batch)
