"""The job's own products, tried batch by batch: a model may take other paths elsewhere in the data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from hvp_engine.blocks import BlockPart, Partition, ResolvedBlock
from hvp_engine.diagnosis.allowance import GRAPH, PRODUCT, Allowance
from hvp_engine.diagnosis.report import Finding
from hvp_engine.diagnosis.source import users_line_of_error
from hvp_engine.errors import (
    BackendError,
    BackwardError,
    ConfigurationError,
    HvpEngineError,
    NotFiniteError,
    SecondDerivativeError,
    not_finite,
)
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.inspection import GraphInspection
from hvp_engine.operators.verification import verify
from hvp_engine.problem import batches
from hvp_engine.problem.objective import MicroBatch, Objective
from hvp_engine.scheduling.passes import FEW, Passes
from hvp_engine.scheduling.scheduler import Scheduler
from hvp_engine.system.failures import is_device_failure, is_out_of_memory
from hvp_engine.system.formatting import first_line, first_names
from hvp_engine.system.memory import budget
from hvp_engine.system.phases import phase

_EPSILON = "add a small epsilon to sqrt, norm, log or division by a vanishing number, or try precision='fp64'"


def union_of(objective: Objective, partition: Partition) -> ResolvedBlock:
    """Return the block of all parameters that some block touches."""
    sizes = objective.parameters_named(partition.parameters)
    parts = tuple(BlockPart(name, None, p.shape, p.numel()) for name, p in sizes.items())
    return ResolvedBlock("union of all blocks", parts, sum(part.numel for part in parts))


@phase("trying products with the data")
def examine_products(
    objective: Objective, partition: Partition, largest: Any, allowed: Allowance, share: float
) -> list[Finding]:
    """Look at the graph of one batch after the other and multiply by a vector, as a job does, in its micro-batches.

    Where a graph is not known to be right for several vectors at once, several are tried and compared.

    Args:
        objective: The job's objective, with all of its data.
        partition: The job's blocks.
        largest: The data's largest batch.
        allowed: The time. Batches that are not reached are left out, and a note says so; where products of a
            micro-batch take too long, those of fewer samples are tried.
        share: How much of what is left may be taken.

    Returns:
        At most one error, and notes.
    """
    deadline = time.monotonic() + share * allowed.left
    most = allowed.most(batches.samples(largest) or 1, GRAPH + PRODUCT, share / 2)
    if not most:
        return [allowed.left_out("Products", "batches-not-reached", 2 * (GRAPH + PRODUCT))]
    trial = _Trial(objective, partition, largest, most)
    for number, batch in objective.batches():
        for micro in trial.pieces(number, batch):
            if micro.key != (0, 0) and time.monotonic() > deadline:
                message = f"Products were tried with the data up to batch {number}; the rest would have taken too long."
                return [*trial.notes, Finding("note", "batches-not-reached", message, fix="give more seconds")]
            try:
                trial.multiply(micro)
            except SecondDerivativeError as error:
                if isinstance(error, BackwardError):
                    return [*trial.notes, failure(error, f"Batch {number}: ")]
                message, _, _ = str(error).partition(" check=False")
                return [*trial.notes, Finding("error", "rare-path", f"Batch {number}: {message}")]
            except Exception as error:
                return [*trial.notes, failure(error, f"Batch {number}: ")]
    return trial.notes


class _Trial:
    def __init__(self, objective: Objective, partition: Partition, largest: Any, most: int) -> None:
        self._objective, self._partition = objective, partition
        self._union = union_of(objective, partition)
        self._parameters = objective.parameters_named(partition.parameters)
        self._passes = Passes(objective.precision)
        self._inspection = GraphInspection()
        with objective.arithmetic():
            whole = Partition({self._union.name: self._union}, partition.parameters, ())
            plan = Scheduler(objective, whole, self._graph, largest, budget=budget(objective.device)).plan
        size = batches.samples(largest)
        self._step, self._streams = plan.microbatch, plan.streams_per_pass
        if size is not None and most < (self._step or size):
            self._step = most

    @property
    def notes(self) -> list[Finding]:
        if self._passes.note is None:
            return []
        message = f"Products are right but slower than they might be: {self._passes.note}."
        return [Finding("note", "single-passes", message)]

    def pieces(self, number: int, batch: Any) -> Iterator[MicroBatch]:
        size = batches.samples(batch)
        step = size if self._step is None else self._step
        if size is None or step is None or size <= step:
            yield MicroBatch((number, 0), batch)
            return
        for start in range(0, size, step):
            yield MicroBatch((number, start), batches.cut(batch, start, min(start + step, size)))

    def multiply(self, micro: MicroBatch) -> None:
        objective, union = self._objective, self._union
        with objective.arithmetic():
            total, weight = objective.evaluate(micro.batch, micro.identity)
            unknown = self._inspection.unknown(micro.key, total, objective.cuts)
            graph = GradientGraph(total, weight, self._parameters)
            graph.refuse_cuts()
            del total
            if unknown:
                _, tested = verify(objective, self._partition.parameters, [micro.batch], unknown)
                self._inspection.trusted |= tested
            count = 1 if graph.batchable or self._streams <= FEW else FEW + 1
            generator = torch.Generator().manual_seed(0)
            vectors = torch.randn(count, union.numel, generator=generator, dtype=objective.dtype, device="cpu").to(
                objective.device
            )
            products = torch.zeros_like(vectors)
            self._passes.multiply(micro.key, graph, union, vectors, products)
            pieces = zip(union.parts, union.split(products), strict=True)
            broken = [part.parameter for part, piece in pieces if not piece.isfinite().all()]
        if broken:
            raise NotFiniteError(not_finite(f"in {first_names(broken)}"))

    def _graph(self, micro: MicroBatch) -> GradientGraph:
        return GradientGraph(*self._objective.evaluate(micro.batch), self._parameters)


def failure(error: Exception, where: str = "") -> Finding:
    """Make the finding about an exception that stopped an examination.

    Args:
        error: Of this package, or of the model's.
        where: What was examined, in words before the message.
    """
    line = users_line_of_error(error.__cause__ or error)
    of_machine = _of_the_machine(error, where, line)
    if of_machine is not None:
        return of_machine
    if not isinstance(error, HvpEngineError):
        message = f"{where}The examination was stopped by {type(error).__name__}: {first_line(error)}."
        return Finding("error", "examination-fails", message, None, line)
    if isinstance(error, NotFiniteError):
        code = "curvature-not-finite" if "product" in str(error) else "loss-not-finite"
        return Finding("error", code, f"{where}{error}", None, line, _EPSILON if code[0] == "c" else "")
    if isinstance(error, SecondDerivativeError):
        code = "backward-fails" if isinstance(error, BackwardError) else "no-second-derivative"
        return Finding("error", code, f"{where}{error}", None, line)
    code = "cannot-be-run" if isinstance(error, ConfigurationError) else "loss-fails"
    return Finding("error", code, f"{where}{error}", None, line)


def _of_the_machine(error: Exception, where: str, line: str | None) -> Finding | None:
    """Make the finding about an exception that tells nothing of the model; None for any other."""
    if is_out_of_memory(error):
        message = f"{where}The examination ran out of memory ({first_line(error)})."
        fix = "use a smaller model, shorter sequences or batches"
        return Finding("error", "out-of-memory", message, None, line, fix)
    if is_device_failure(error):
        message = f"{where}The device failed ({first_line(error)}), at this line or before."
        fix = "run again in a new process with CUDA_LAUNCH_BLOCKING=1, and the line is the cause"
        return Finding("error", "device-fails", message, None, line, fix)
    if isinstance(error, BackendError):
        return Finding("error", "kernels-fail", f"{where}{error}", None, line)
    return None
