"""What all curvature operators share: products with diagonal blocks, one sweep over the data at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from hvp_engine.blocks import BlockSpec, resolve
from hvp_engine.errors import ConfigurationError, HvpEngineError
from hvp_engine.kernels.allocator import give_back, retained_heap
from hvp_engine.krylov.settings import check_memory, checked_microbatch
from hvp_engine.operators.compiled.products import Compiler
from hvp_engine.operators.derivative_check import Verification
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.head.decide import decide_curvature
from hvp_engine.operators.head.find import LinearHead
from hvp_engine.operators.head.fusion import HeadFusion
from hvp_engine.operators.head.shelf import Shelf
from hvp_engine.operators.inspection import GraphInspection, Suspect
from hvp_engine.operators.matrix_like import MatrixLike
from hvp_engine.operators.preconditioned import Precondition, Preconditioner, preconditioner
from hvp_engine.operators.vectors import checked_rows, refuse_nonfinite
from hvp_engine.operators.verification import choose_check, verify
from hvp_engine.ops.head.dropping import check_tolerance
from hvp_engine.ops.head.room import head_room
from hvp_engine.problem.model_state import turn
from hvp_engine.problem.objective import Loss, MicroBatch, Objective
from hvp_engine.problem.precision import Precision
from hvp_engine.problem.watch import changed_during_job
from hvp_engine.problem.weights import check_weights
from hvp_engine.scheduling.compiling import room_to_compile
from hvp_engine.scheduling.passes import ProductGraph
from hvp_engine.scheduling.policy import choose_waves, products_past_head, spare, usable
from hvp_engine.scheduling.scheduler import Scheduler
from hvp_engine.scheduling.waves import StreamSizes
from hvp_engine.system.failures import failures_in_words
from hvp_engine.system.formatting import first_names
from hvp_engine.system.memory import budget as free_budget
from hvp_engine.system.phases import phase

T = TypeVar("T")


class CurvatureOperator(MatrixLike):
    """Products with the diagonal blocks of a curvature matrix of an objective.

    The objective is (sum of batch totals) / (sum of batch weights). A subclass supplies the graph of a micro-batch and
    its product with a block (:meth:`_graph`); order of loops, memory, versions and the head are the same for all.

    Graphs of micro-batches that fit into memory stay alive between products; they are dropped when a parameter changes,
    so that a product always belongs to the parameters as they are (of the model itself, or of the converted copy where
    the model has another dtype than ``precision``).

    Attributes:
        matrix: What it multiplies with, in a word; run folders are told apart by it.
        objective: Loss, model and data.
        partition: The blocks, resolved against the model.
        scheduler: Order of loops, and what fits.
        compiler: What compiled products share; it knows how many of them a job will ask for.
        preconditioner: The diagonal that scales the matrix from both sides, None where there is none.
    """

    matrix: ClassVar[str]
    uses_head_curvature: ClassVar[bool] = True
    """Whether products pass second derivatives of the loss, which the head's curvature has."""
    graph: ClassVar[type[GradientGraph]] = GradientGraph
    """The graph on which the second derivative is tested."""
    measures_late: ClassVar[bool] = False
    """Whether graphs may be measured at the first sweep that needs it; to build one here refuses what has no matrix."""
    finds_head: ClassVar[bool] = True
    """Whether the model's head is looked for, which takes an evaluation of the loss."""
    checked = True
    """Whether custom autograd functions and cut graphs are tested by finite differences before the first product."""

    @failures_in_words("the model, the loss and the data were looked at")
    @torch.inference_mode(False)  # a caller's inference mode would make every tensor unfit for autograd
    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        blocks: BlockSpec = None,
        *,
        data: Iterable[Any] | None = None,
        precision: Precision = "fp32",
        microbatch: int | None = None,
        memory: int | None = None,
        precondition: Precondition | None = None,
        seed: int = 0,
    ) -> None:
        """Check the model, the loss and the data, and plan the sweeps.

        Args:
            model: The network; never changed.
            loss: ``loss(model, batch)``, or ``loss(model)`` when ``data`` is None. It returns the mean over its batch
                as a scalar, or ``(total, weight)``.
            blocks: See :func:`hvp_engine.blocks.resolve`.
            data: Re-iterable of batches (tensors, tuples or mappings of tensors).
            precision: ``"fp64"``, ``"fp32"``, ``"tf32"`` or ``"bf16"``: arithmetic of the products.
            microbatch: Samples differentiated at once; None chooses.
            memory: Budget in bytes for graphs and temporaries; None takes 80 % of what is free.
            precondition: A diagonal P, as :func:`hvp_engine.operators.preconditioned.preconditioner` reads it: the
                matrix A becomes P^-1/2 A P^-1/2. None leaves it as it is.
            seed: Decides what an operator draws, if it does.

        Raises:
            HvpEngineError: One of its subclasses, for anything that would make the products wrong.
        """
        microbatch = checked_microbatch(microbatch)
        check_memory(memory)
        with turn(model):
            self.objective = Objective(model, loss, data, precision)
            self.partition = resolve(self.objective.model, blocks)
            self._parameters = self.objective.parameters_named(self.partition.parameters)
        self.preconditioner: Preconditioner | None = None
        if precondition is not None:
            self.preconditioner = preconditioner(precondition, model, self.partition, self.device, self.dtype)
        self._seed = seed
        self._steady = False
        self._stream_bytes = 0  # vectors that the caller keeps beside the graphs, at least
        budget = usable(memory, free_budget(self.objective.device))
        room = self.objective.head_room = head_room(budget, on_cpu=self.objective.device.type == "cpu")
        with retained_heap(), self.objective.arithmetic():
            largest, first_value = self.objective.largest_batch(), self.objective.first_value
            self._inspection = GraphInspection()
            self._fusion = HeadFusion(self.objective, largest, first_value(largest), search=self.finds_head)
            self.objective.check_deterministic(largest, may_wait=microbatch is None)
            check_weights(self.objective, largest)
            self.scheduler = Scheduler(
                self.objective,
                self.partition,
                self._graph,
                largest,
                microbatch=microbatch,
                budget=budget,
                beside=0 if self.head is None else room.beyond,
            )
            if not self.measures_late:
                with phase("measuring a gradient graph"):
                    self.scheduler.settle()
            self.scheduler.scaling = self.preconditioner
            self.compiler = Compiler(precision, self.objective.arithmetic, self._room_to_compile)

    @abstractmethod
    def _graph(self, micro: MicroBatch) -> ProductGraph:
        """Build the graph of a micro-batch; called with the objective's arithmetic in force."""

    def _evaluate(
        self, micro: MicroBatch, within: AbstractContextManager[object] | None = None
    ) -> tuple[Tensor, float]:
        """Return total and weight of a micro-batch, attached to the graph, by the head's curvature where it serves.

        Args:
            micro: The micro-batch.
            within: What the loss is to run in.
        """
        with self._fusion.using(micro.key), within or nullcontext():
            total, weight = self.objective.evaluate(micro.batch, micro.identity)
        # A sample is looked at, so that what is known to be wrong is refused before the work, and is not the job's.
        key = ("sample", micro.key) if micro.is_sample else micro.key
        unknown = self._inspection.unknown(key, total, self.objective.cuts)
        if unknown and self.checked and not micro.is_sample:
            _, tested = verify(self.objective, self.partition.parameters, [micro.batch], unknown, self.graph)
            self._inspection.trusted |= tested
        return total, weight

    def _parameters_of(self, blocks: Iterable[str] | None) -> dict[str, nn.Parameter]:
        """Return the parameters of some blocks, of all of them for None, by canonical name."""
        if blocks is None:
            return self._parameters
        names = {part.parameter for block in blocks for part in self.partition.blocks[block].parts}
        return {name: parameter for name, parameter in self._parameters.items() if name in names}

    @property
    def head(self) -> LinearHead | None:
        """The linear layer whose output goes into cross-entropy alone, if there is one."""
        return self._fusion.head

    @property
    def head_curvature(self) -> str | None:
        """What became of the head's curvature, in words; None where it was not formed."""
        return self._fusion.outcome

    @property
    def held_bytes(self) -> int:
        """Memory that stays taken during the whole job: the head's curvature, where it is in memory, a diagonal."""
        return self._fusion.held_bytes + (0 if self.preconditioner is None else self.preconditioner.bytes)

    @property
    def name(self) -> str:
        """The matrix in words."""
        return self.matrix if self.preconditioner is None else f"preconditioned {self.matrix}"

    def matmat(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply vectors by their blocks in one sweep over the data.

        Args:
            vectors: (k, numel) per block; any subset of the blocks, k may differ. Converted to the operator's dtype
                and device.

        Returns:
            The products, of the same shapes, in the operator's dtype.

        Raises:
            BlockError: A block is unknown.
            ConfigurationError: A shape is wrong, or a vector is complex or not finite.
            NotFiniteError: A product is not finite.
            NonDeterministicError: The loss or the data is not what it was in an earlier sweep.
        """
        converted = checked_rows(self.partition, vectors, self.device, self.dtype)
        products = self._swept(lambda: self.scheduler.sweep(converted), waiting=True)
        refuse_nonfinite(self.partition, products)
        return products

    def sweep(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Do the same as `matmat` without looking at vectors and products, which on a GPU would wait for them.

        Args:
            vectors: (k, numel) per block, in the operator's dtype, on its device, finite.

        Returns:
            As `matmat`.
        """
        return self._swept(lambda: self.scheduler.sweep(vectors), waiting=False)

    def sweep_apart(
        self, vectors: Sequence[Mapping[str, Tensor]], part: Callable[[int], int]
    ) -> tuple[list[dict[str, Tensor]], list[float]]:
        """Multiply vectors by what parts of divided data add to the blocks, see :meth:`Scheduler.sweep_apart`."""
        return self._swept(lambda: self.scheduler.sweep_apart(vectors, part), waiting=False)

    @failures_in_words("products were formed")
    @torch.inference_mode(False)
    def _swept(self, multiply: Callable[[], T], *, waiting: bool) -> T:
        """Multiply by the blocks of a model that is what it was."""
        if not self._steady or self.objective.watch.touched():
            self._look(waiting=waiting)
        self.objective.held_data.check()
        try:
            with retained_heap():
                products = multiply()
        except HvpEngineError:
            if self._steady:
                self._look()  # what changed is the cause, and is named in place of what came of it
            raise
        if self._steady:
            self._look(waiting=False)
        return products

    @phase("making room for vectors")
    def make_room(self, streams: StreamSizes) -> None:
        """Settle for micro-batches beside whose graph the vectors of a job fit; call before any work is done.

        Raises:
            OutOfMemoryError: Not even one stream of some block fits.
        """
        self._stream_bytes = streams.largest
        self.scheduler.make_room(streams.largest)
        plan = self.scheduler.plan
        choose_waves(streams, plan.budget, self.scheduler.working_bytes, self.held_bytes)

    def form_head_curvature(
        self,
        products: Mapping[str, int],
        progress: bool | None = None,
        tolerance: float = 0.0,
        shelf: Shelf | None = None,
    ) -> None:
        """Spend time once to make the products of a long job cheaper.

        Where the model has a linear head and it pays, the head's curvature is formed for every micro-batch (see
        :mod:`hvp_engine.operators.head.store`); products with blocks without the head's weights then use it.

        Args:
            products: How many products of each block the job will ask for.
            progress: True shows progress, False hides it, None shows it on a terminal.
            tolerance: What dropping classes of little probability may change, see
                :func:`hvp_engine.ops.head.curvature.form_head_curvature`; 0 drops none.
            shelf: Keeps it for a resumed job, and may have it from an earlier run.

        Raises:
            ConfigurationError: The tolerance is not in [0, 1).
        """
        check_tolerance(tolerance)
        head = self.head
        if head is None or self._fusion.formed or not self.uses_head_curvature:
            return
        blocks = self.partition.blocks.items()
        holders = frozenset(name for name, block in blocks if any(part.parameter == head.name for part in block.parts))
        users = products_past_head(products, holders)
        budget = self.scheduler.plan.budget
        left = spare(self.scheduler.working_bytes, budget, self._stream_bytes)
        share = self.scheduler.share
        part = 1.0 if share is None else share.part
        plan = decide_curvature(head, self.objective, users, budget, left, shelf, part)
        if plan is None:
            return
        self.scheduler.release()
        with retained_heap():
            self._fusion.form(plan, self.scheduler.microbatches, progress, tolerance, shelf)

    @property
    def uncompiled(self) -> str | None:
        """Why some products go by backward passes although they are many, in words; None where that is not so."""
        return self.compiler.note

    def _room_to_compile(self) -> int:
        return room_to_compile(self.scheduler.plan, self.scheduler.working_bytes)

    @phase("testing the second derivative")
    def verify(self, products: Mapping[str, int]) -> Verification:
        """Test the second derivative on as much of the first micro-batch as a job can afford.

        Args:
            products: How many products of each block the job will ask for.

        Returns:
            The measured errors.

        Raises:
            SecondDerivativeError: It is wrong, or cannot be tested.
        """
        batch = self.scheduler.first_microbatch().batch
        chosen = choose_check(self.objective, self.partition, batch, self.scheduler, products)
        names = self.partition.parameters
        measured, tested = verify(self.objective, names, chosen.pieces, graph=self.graph, widest=chosen.widest)
        give_back()  # before vectors are made
        self._inspection.trusted |= tested
        return measured

    @property
    def tested(self) -> set[Suspect]:
        """The custom autograd functions, and the places that cut graphs, which need no test any more."""
        return self._inspection.trusted

    def trust(self, known: Callable[[Suspect], bool]) -> None:
        """Take the word of an earlier run for custom autograd functions and places that cut graphs.

        Args:
            known: Says whether it tested one.
        """
        self._inspection.vouched = known

    def release(self) -> None:
        """Drop the kept graphs and the head's curvature to free their memory."""
        self.scheduler.release()
        self._fusion.clear()

    def hold_steady(self) -> None:
        """Take the model as it is for that of a job: from here on a change of it is an error."""
        self._look()
        self._steady = True

    def look(self) -> None:
        """See that a job's model is still what it was, on a GPU by its content, which sweeps do not read.

        Raises:
            NonDeterministicError: It changed.
        """
        self._look()

    def _look(self, *, waiting: bool = True) -> None:
        """See what was written to the model since the last look, and drop what no longer belongs to it.

        Raises:
            NonDeterministicError: Something changed during a job.
        """
        watch = self.objective.watch
        changed = watch.look(waiting=waiting)
        if not watch.stale:
            return
        self.release()
        self._inspection.forget_micros()
        self._parameters = self.objective.parameters_named(self.partition.parameters)
        frozen = [name for name, parameter in self._parameters.items() if not parameter.requires_grad]
        if frozen:
            raise ConfigurationError(
                f"Parameters of the blocks no longer require gradients: {first_names(frozen)}. Set requires_grad=True "
                "on them, or make a new operator, whose blocks leave them out."
            )
        if not self._steady:
            self.objective.forget()
        elif changed:
            raise changed_during_job(changed)
