"""The Hessian of an objective as a block-diagonal operator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine.blocks import BlockSpec, resolve
from hvp_engine.errors import BlockError, ConfigurationError
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.head.store import CurvatureStore, Head, plan_curvature
from hvp_engine.ops.head.dropping import check_tolerance
from hvp_engine.problem.objective import Loss, MicroBatch, Objective
from hvp_engine.problem.precision import Precision
from hvp_engine.scheduling.scheduler import Scheduler
from hvp_engine.system.progress import ProgressReporter


class HessianOperator:
    """Products with the diagonal blocks H_bb of an objective's Hessian.

    The objective is (sum of batch totals) / (sum of batch weights). Graphs of micro-batches that fit into memory stay
    alive between products; they are dropped when a parameter changes, so that a product always belongs to the
    parameters as they are (of the model itself, or of the converted copy where the model has another
    dtype than ``precision``).

    Attributes:
        blocks: Block names in order.
        numel: Size of each block's vectors.
        notes: What was decided about tied and frozen parameters.
    """

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

        Raises:
            HvpEngineError: One of its subclasses, for anything that would make the products wrong.
        """
        self.objective = Objective(model, loss, data, precision)
        self.partition = resolve(self.objective.model, blocks)
        self._parameters = {name: self.objective.parameters[name] for name in self.partition.parameters}
        self._versions = self._state()
        self._curvature: CurvatureStore | None = None
        self._inspected = False
        with retained_heap():
            self.scheduler = Scheduler(
                self.objective, self.partition, self._graph, microbatch=microbatch, budget=memory
            )

    @property
    def head(self) -> Head | None:
        """The linear layer whose output goes into cross-entropy alone, if there is one."""
        return self.scheduler.head

    @property
    def blocks(self) -> tuple[str, ...]:
        """Block names in order."""
        return tuple(self.partition.blocks)

    @property
    def numel(self) -> dict[str, int]:
        """Length of each block's vectors."""
        return {name: block.numel for name, block in self.partition.blocks.items()}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided about tied and frozen parameters, in plain words."""
        return self.partition.notes

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of vectors and products."""
        return self.objective.dtype

    @property
    def device(self) -> torch.device:
        """Device of vectors and products."""
        return self.objective.device

    def matmat(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply vectors by their Hessian blocks in one sweep over the data.

        Args:
            vectors: (k, numel) per block; any subset of the blocks, k may differ. Converted to the operator's dtype
                and device.

        Returns:
            H_bb v, of the same shapes, in the operator's dtype.

        Raises:
            BlockError: A block is unknown.
            ConfigurationError: A shape is wrong, or a vector is complex or not finite.
        """
        if not isinstance(vectors, Mapping):
            raise ConfigurationError(
                f"vectors must be a mapping of block names to (k, numel) tensors, not {type(vectors).__name__}: for "
                'the whole model {"full": vectors}.'
            )
        with torch.inference_mode(False):
            converted = {name: self._vectors(name, block_vectors) for name, block_vectors in vectors.items()}
        return self.sweep(converted)

    @torch.inference_mode(False)
    def sweep(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Do the same as `matmat` without looking at the vectors, which on a GPU would wait for them.

        Args:
            vectors: (k, numel) per block, in the operator's dtype, on its device, finite.

        Returns:
            As `matmat`.
        """
        versions = self._state()
        if versions != self._versions:
            self.release()
            self._versions = versions
            self._parameters = {name: self.objective.parameters[name] for name in self.partition.parameters}
        with retained_heap():
            return self.scheduler.sweep(vectors)

    def prepare(self, products: Mapping[str, int], progress: bool | None = None, tolerance: float = 0.0) -> None:
        """Spend time once to make the products of a long job cheaper.

        Where the model has a linear head and it pays, the head's curvature is formed for every micro-batch
        (see :mod:`hvp_engine.operators.head.store`); products with blocks that do not contain the head's weights then
        use it.

        Args:
            products: How many products of each block the job will ask for.
            progress: True shows progress, False hides it, None shows it on a terminal.
            tolerance: What dropping classes of little probability may change, see
                :func:`hvp_engine.ops.head.curvature.form_head_curvature`; 0 drops none.

        Raises:
            ConfigurationError: The tolerance is not in [0, 1).
        """
        check_tolerance(tolerance)
        if self.head is None or self._curvature is not None:
            return
        blocks = self.partition.blocks
        users = sum(
            count
            for name, count in products.items()
            if all(part.parameter != self.head.name for part in blocks[name].parts)
        )
        plan = plan_curvature(self.head, self.objective, users, self.scheduler.plan.budget)
        if plan is None:
            return
        self.scheduler.release()
        store = CurvatureStore(self.head.weight, plan, tolerance)
        general, self.objective.fused.head = self.objective.fused.head, store
        self._curvature = store
        with retained_heap(), torch.no_grad(), self.objective.arithmetic():
            total = sum(1 for _ in self.scheduler.microbatches())
            with ProgressReporter("head curvature", 100 * total, progress) as reporter:
                for number, micro in enumerate(self.scheduler.microbatches()):
                    store.report = partial(_reach, reporter, number)
                    with store.using(micro.key), torch.no_grad():
                        self.objective.evaluate(micro.batch)
        store.report = None
        self.scheduler.plan.head_curvature = str(store)
        if not store.accurate:
            self.objective.fused.head, self._curvature = general, None
            self.scheduler.plan.head_curvature = f"not used: its relative error is {store.error:.1e}"

    @property
    def held_bytes(self) -> int:
        """Memory that stays taken during the whole job: the head's curvature, where it is in memory."""
        return 0 if self._curvature is None else self._curvature.plan.memory_bytes

    def release(self) -> None:
        """Drop the kept graphs and the head's curvature to free their memory."""
        self.scheduler.release()
        if self._curvature is not None:
            self._curvature.clear()

    def _state(self) -> list[tuple[int, int]]:
        """Changes whenever a parameter or buffer is written to or replaced."""
        model = self.objective.model
        return [(t.data_ptr(), t._version) for t in (*model.parameters(), *model.buffers())]

    def _vectors(self, name: str, vectors: Tensor) -> Tensor:
        if name not in self.partition.blocks:
            raise BlockError(f"There is no block {name!r}; the blocks are {', '.join(self.blocks)}.")
        size = self.partition.blocks[name].numel
        if not isinstance(vectors, Tensor) or vectors.dim() != 2 or vectors.shape[1] != size:
            shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ConfigurationError(f"Vectors of block {name!r} must have shape (k, {size}), got {shape}.")
        if vectors.is_complex():
            raise ConfigurationError(f"Vectors of block {name!r} are complex; multiply real and imaginary parts apart.")
        if not torch.isfinite(vectors).all():
            raise ConfigurationError(f"A vector of block {name!r} has entries that are not finite.")
        converted = vectors.detach().to(self.device, self.dtype)
        return converted.clone() if converted.is_inference() else converted

    def _graph(self, micro: MicroBatch) -> GradientGraph:
        if self._curvature is None:
            total, weight = self.objective.evaluate(micro.batch)
        else:
            with self._curvature.using(micro.key):
                total, weight = self.objective.evaluate(micro.batch)
        graph = GradientGraph(total, weight, self._parameters)
        if not self._inspected:  # once: every micro-batch runs the same operations
            graph.refuse_cuts()
            self._inspected = True
        return graph


def _reach(reporter: ProgressReporter, number: int, share: float) -> None:
    """Report that micro-batch ``number`` is done to a share."""
    reporter.reach(round(100 * (number + share)))
