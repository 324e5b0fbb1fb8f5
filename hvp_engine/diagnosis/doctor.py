"""The doctor: can the Hessian of this model be trusted, and what does it cost? Answered in seconds."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine.blocks import Block, BlockSpec, Partition, resolve
from hvp_engine.diagnosis.allowance import GRAPH, Allowance
from hvp_engine.diagnosis.cost import measure_costs
from hvp_engine.diagnosis.curvature import examine_blocks
from hvp_engine.diagnosis.data import Passes, examine_data, examine_weights
from hvp_engine.diagnosis.model import eval_and_eager, examine_model
from hvp_engine.diagnosis.operations import examine_graph, failed_backward, suspects
from hvp_engine.diagnosis.products import examine_products, failure
from hvp_engine.diagnosis.report import SEVERITIES, Diagnosis, Finding
from hvp_engine.diagnosis.source import users_line_of_error
from hvp_engine.diagnosis.trace import Trace, without_reentrancy
from hvp_engine.errors import (
    ConfigurationError,
    NonDeterministicError,
    NotFiniteError,
    ObjectiveError,
    SecondDerivativeError,
)
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.problem import batches
from hvp_engine.problem.checks import check_module
from hvp_engine.problem.loss_signature import check_loss
from hvp_engine.problem.model_state import turn
from hvp_engine.problem.objective import Loss, Objective
from hvp_engine.problem.obstacles import obstacles
from hvp_engine.problem.precision import Precision, check_precision
from hvp_engine.problem.randomness import fixed_numbers
from hvp_engine.system.failures import failures_in_words
from hvp_engine.system.formatting import first_names
from hvp_engine.system.phases import phase, shows_phases

_SHARES = {"data": 0.2, "blocks": 0.8, "products": 0.5, "cost": 0.9}  # of the time that is left then
_LONGEST = 1e9  # seconds
_EVALUATIONS = 2  # of a few samples, in which randomness is looked for
_WEIGHTS = 4  # evaluations of every sample, in which weights are looked at
_STOPPED = frozenset(  # what makes products impossible
    (
        *("no-second-derivative", "compiled-module", "backward-fails", "curvature-not-finite"),
        *("out-of-memory", "device-fails", "kernels-fail", "examination-fails", "rare-path"),
    )
)
_UNSOUND = _STOPPED | {"known-wrong-derivative", "wrong-second-derivative", "second-derivative-fails", "loss-fails"}


@shows_phases
@failures_in_words("the model was examined")
@torch.inference_mode(False)
def doctor(
    model: nn.Module,
    loss: Loss,
    blocks: BlockSpec = None,
    *,
    data: Iterable[Any] | None = None,
    precision: Precision = "fp32",
    seconds: float = 60.0,
    progress: bool | None = None,
) -> Diagnosis:
    """Examine a model, a loss and data before hours of work with their Hessian.

    Looks for operations without second derivative and for silently wrong ones (symmetry u'Hv = v'Hu and central
    differences of the gradient, for every block), for dropout and BatchNorm in train mode, data that changes between
    passes, randomness, losses and gradients that are not finite, blocks without curvature, tied, frozen, unused and
    low-precision parameters, reentrant checkpointing and compiled modules; and measures time and memory of products.
    Everything is reported at once: what stops one test is put out of action for the next ones where that is possible.

    Args:
        model: The network; as it was afterwards.
        loss: ``loss(model, batch)``, or ``loss(model)`` when there is no data, as for :func:`hvp_engine.slq`.
        blocks: See :func:`hvp_engine.blocks.resolve`.
        data: Re-iterable of batches.
        precision: Arithmetic of the job; the tests of the second derivative run in float64 where the model can.
        seconds: How long to examine, give or take one test; blocks, batches and sizes that are not reached are left
            out, and so is, with a note of what it would take, every test that one sample is too much for.
        progress: True shows what is being tested, False hides it, None shows it on a terminal.

    Returns:
        The report; ``report.ok`` says whether the job can be started.

    Raises:
        ConfigurationError: ``model`` is no module, ``loss`` cannot be called as one, ``blocks`` is data, ``precision``
            is unknown, or ``seconds`` is below 0.
        BlockError: The block specification does not fit the model.
    """
    started = time.monotonic()
    check_precision(precision)
    check_module(model)
    if not isinstance(seconds, (int, float)) or not (0 <= seconds <= _LONGEST or seconds == math.inf):
        raise ConfigurationError(f"seconds={seconds!r} must be a number from 0 to {_LONGEST:g}, or infinity.")
    if data is None and not _names_blocks(blocks):
        raise ConfigurationError(
            f"The third argument of doctor is blocks, and this {type(blocks).__name__} names none; if it is the data, "
            "pass data=... by name."
        )
    check_loss(loss, takes_batch=data is not None)
    with _examining, turn(model), ExitStack() as stack, warnings.catch_warnings():
        partition = resolve(model, blocks)
        report = Diagnosis(examine_model(model, partition), block_count=len(partition.blocks))
        warnings.simplefilter("ignore")  # what PyTorch warns of here is reported in other words, or harmless
        stack.enter_context(eval_and_eager(model))
        stack.enter_context(without_reentrancy())
        if any(obstacles(model)):
            report.findings.append(Finding("note", "not-examined", "The model was not run: see the errors."))
        else:
            allowed = Allowance(seconds, started)
            _Examination(report, model, loss, partition, data, precision, allowed).run()
    report.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    report.seconds = time.monotonic() - started
    return report


# Warning filters, anomaly mode and the switch of checkpointing are the process's: two examinations wait for each other.
_examining = threading.RLock()


class _Examination:
    """The tests that run the model, in order; the report collects what they find."""

    def __init__(
        self,
        report: Diagnosis,
        model: nn.Module,
        loss: Loss,
        partition: Partition,
        data: Iterable[Any] | None,
        precision: Precision,
        allowed: Allowance,
    ) -> None:
        self._report = report
        self._model, self._loss, self._data = model, loss, data
        self._partition = partition
        self._precision = precision
        self._allowed = allowed

    def run(self) -> None:
        """Run every test that the ones before it leave possible; what the model raises is a finding."""
        try:
            self._run()
        except Exception as error:
            self._report.findings.append(failure(error))

    def _run(self) -> None:
        try:
            whole = objective = Objective(self._model, self._loss, self._data, self._precision)
            passes = self._read_data()
            if self._data is not None:
                # From here on one batch stands for the data.
                objective = Objective(self._model, self._loss, [passes.batch], self._precision)
            _, batch = next(iter(objective.batches()))
        except ObjectiveError as error:
            self._add("error", "data-unusable", str(error))
            return
        steady = self._timed(objective, batch)
        if steady is None:
            return
        if passes.complete:
            self._examine_weights(steady, batch, passes)
        self._examine_derivatives(steady, batch)
        if steady is objective and not self._is_any(_UNSOUND):
            self._report.findings += examine_products(whole, self._partition, batch, self._allowed, _SHARES["products"])
        if self._report.blocks and not self._is_any(_STOPPED):
            costs, notes = measure_costs(steady, self._partition, batch, self._allowed, _SHARES["cost"])
            self._report.costs = costs
            self._report.findings += notes

    @phase("looking at the weights of batches")
    def _examine_weights(self, steady: Objective, batch: Any, passes: Passes) -> None:
        """Look at the weights of all batches, or, where that takes too long, of a few samples as one batch."""
        data, share = self._data, _SHARES["data"]
        if data is not None and not self._allowed.allows(_WEIGHTS * (passes.samples or 1), share):
            if not self._allowed.allows(_WEIGHTS * batches.FEW, share):
                left_out = self._allowed.left_out("Weights of batches", "weights-not-examined", _WEIGHTS * batches.FEW)
                self._report.findings.append(left_out)
                return
            data = [batches.few_samples(batch)]
        self._report.findings += examine_weights(Objective(self._model, steady.loss, data, self._precision))

    @phase("evaluating the loss twice")
    def _timed(self, objective: Objective, batch: Any) -> Objective | None:
        """Evaluate the loss of a few samples as :meth:`_without_randomness`, and time it."""
        walls, work = time.monotonic(), time.process_time()
        steady = self._without_randomness(objective, batch)
        # Neither other processes on this machine nor a second thread make a model slower.
        took = min(time.monotonic() - walls, time.process_time() - work)
        self._allowed.evaluation = took / (_EVALUATIONS * min(batches.samples(batch) or 1, batches.FEW))
        return steady

    def _is_any(self, codes: frozenset[str]) -> bool:
        """Whether something of these kinds was found."""
        return any(finding.code in codes for finding in self._report.findings)

    def _examine_derivatives(self, objective: Objective, batch: Any) -> None:
        """Examine operations and test blocks of a loss that is the same in every evaluation."""
        trace = Trace()
        graph = self._trace(objective, batch, trace)
        if graph is None:
            return
        self._report.replaced = sorted(objective.fused.replaced)
        suspected = suspects(trace, list(graph.gradients.values()))
        del graph, trace  # and what they keep
        found, checks = examine_blocks(objective, self._partition, batch, suspected, self._allowed, _SHARES["blocks"])
        known = self._is_any(_STOPPED)
        self._report.findings += [f for f in found if not (known and f.code == "second-derivative-fails")]
        self._report.blocks = checks

    @phase("reading the data twice")
    def _read_data(self) -> Passes:
        if self._data is None:
            return Passes(samples=1)
        passes = examine_data(self._data, _SHARES["data"] * self._allowed.total)
        self._report.findings += passes.findings
        self._report.samples = passes.samples
        if passes.batch is None:
            raise ObjectiveError("data is empty: it yields no batch.")
        return passes

    def _without_randomness(self, objective: Objective, batch: Any) -> Objective | None:
        """Evaluate twice; a loss that draws random numbers goes on with fixed ones, so that the rest can be tested."""
        trace = Trace()
        try:
            with trace.recording(objective.model):
                objective.check_deterministic(batch)
            return objective
        except NonDeterministicError as error:
            lines = [f"{name} at {line}" for line, name in trace.draws.items()]
            cause = f"The calls that draw: {first_names(lines)}." if lines else "No call of PyTorch's functions draws."
            fix = "call model.eval(), or draw the numbers once and keep them in the data"
            self._add("error", "random-loss", f"{error} {cause}", line=next(iter(trace.draws), None), fix=fix)
        except ConfigurationError as error:
            self._add("error", "unsuitable-model", str(error))
            return None
        except ObjectiveError as error:
            self._add_failure(error)
            return None
        data = None if self._data is None else [batch]
        fixed = Objective(self._model, _seeded(self._loss), data, self._precision)
        try:
            fixed.check_deterministic(batch)
        except ObjectiveError:
            self._add("note", "not-examined", "The second derivative was not examined: the loss stays random.")
            return None
        return fixed

    @phase("looking at the graph of a gradient")
    def _trace(self, objective: Objective, batch: Any, trace: Trace) -> GradientGraph | None:
        """Run the passes under observation: operations, checkpoints, unused parameters, gradients not finite."""
        parameters = objective.parameters_named(self._partition.parameters)
        graph = None
        few = max(1, self._allowed.most(batches.FEW, GRAPH, _SHARES["data"]))
        piece = batches.few_samples(batch, few)
        with trace.recording(objective.model), objective.arithmetic():
            try:
                try:
                    total, weight = objective.evaluate(piece)
                except (ObjectiveError, ConfigurationError):  # a mean whose targets are all ignored, say
                    total, weight = objective.evaluate(batch)
                trace.finish(total)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    graph = GradientGraph(total, weight, parameters)
                self._report.findings += examine_graph(graph, trace)
            except ObjectiveError as error:
                self._add_failure(error)
            except SecondDerivativeError as error:
                self._report.findings.append(failed_backward(error, "".join(str(w.message) for w in caught)))
        for module, line in trace.reentrant:
            self._add(
                "error",
                "reentrant-checkpoint",
                "Reentrant activation checkpointing cannot be differentiated twice.",
                module,
                line,
                "use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
            )
        if graph is not None:
            self._examine_gradients(graph.gradients)
        return graph

    def _examine_gradients(self, gradients: Mapping[str, Tensor | None]) -> None:
        unused = [name for name, gradient in gradients.items() if gradient is None]
        if unused:
            self._add(
                "warning",
                "unused-parameter",
                f"{len(unused)} parameter(s) do not enter the loss ({first_names(unused)}): their rows of the Hessian "
                "are zero.",
                fix="leave them out of the blocks, or check that the loss uses what you mean it to",
            )
        broken = [name for name, g in gradients.items() if g is not None and not bool(torch.isfinite(g).all())]
        if broken:
            self._add(
                "error",
                "gradient-not-finite",
                f"The loss is finite, its gradient is not, in {first_names(broken)}: an operation's derivative is "
                "infinite or not a number at these parameters.",
                fix="add a small epsilon to sqrt, norm, log or division by a vanishing number",
            )

    def _add_failure(self, error: Exception) -> None:
        """Report a loss that raised or is not finite."""
        code = "loss-not-finite" if isinstance(error, NotFiniteError) else "loss-fails"
        line = None if error.__cause__ is None else users_line_of_error(error.__cause__)
        self._add("error", code, str(error), line=line)

    def _add(
        self,
        severity: Any,
        code: str,
        message: str,
        module: str | None = None,
        line: str | None = None,
        fix: str = "",
    ) -> None:
        self._report.findings.append(Finding(severity, code, message, module, line, fix))


def _seeded(loss: Loss) -> Loss:
    """Give the loss the same random numbers in every call."""

    def fixed(*arguments: Any) -> Any:
        with fixed_numbers():
            return loss(*arguments)

    return fixed


def _names_blocks(value: object) -> bool:
    """Say whether a value can only be meant as blocks, not as data."""
    if value is None or isinstance(value, (str, Block)):
        return True
    if isinstance(value, Mapping):
        return all(
            isinstance(globs, str) or (isinstance(globs, Sequence) and all(isinstance(g, str) for g in globs))
            for globs in value.values()
        )
    return isinstance(value, Sequence) and bool(value) and all(isinstance(item, (str, Block)) for item in value)
