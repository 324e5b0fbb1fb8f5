"""Order of loops, micro-batch size, streams per pass, and which graphs stay alive between sweeps.

The micro-batch is the outermost loop: its gradient graph is built once per sweep and shared by all blocks and probes,
and kept across sweeps while the memory budget allows. The choices depend on sizes alone, never on timings, so that the
same job makes the same choices, and the same bits, every time.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

import torch
from torch import Tensor

from hvp_engine.blocks import Partition, ResolvedBlock
from hvp_engine.errors import ConfigurationError, ObjectiveError, OutOfMemoryError, SecondDerivativeError
from hvp_engine.operators.head.store import Head, fuse_head
from hvp_engine.problem import batches
from hvp_engine.problem.objective import MicroBatch, Objective
from hvp_engine.system import memory
from hvp_engine.system.memory import is_out_of_memory

log = logging.getLogger(__name__)

GRAPH_SHARE = 0.5  # of the budget for graphs that stay; the rest is for vectors and a second backward's temporaries
TRANSIENT = 2.0  # a graph plus the temporaries of its passes, in units of the graph
BATCHED_BYTES = 24 << 20  # CPU: above this a vmapped pass leaves the caches and loses to single passes
BATCHED_STREAMS = 16


class ProductGraph(Protocol):
    """What a sweep needs of a micro-batch: its weight, and products with a block."""

    weight: float

    def product(self, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, batched: bool) -> None:
        """Add products with (k, numel) vectors to ``out``."""


Build = Callable[[MicroBatch], ProductGraph]


@dataclass
class Plan:
    """What the scheduler decided; recorded in the manifest.

    Attributes:
        microbatch: Samples per micro-batch; None leaves the batches as they are.
        streams_per_pass: Vectors pushed through one second backward.
        graph_bytes: Estimated size of the largest micro-batch's graph.
        kept_graphs: Graphs alive between sweeps.
        budget: Bytes that graphs and their temporaries may take.
        head_curvature: Storage, place, measured error and losses of the head's curvature; None where it is not used.
    """

    microbatch: int | None
    streams_per_pass: int
    graph_bytes: int
    kept_graphs: int
    budget: int
    head_curvature: str | None = None

    def record(self) -> dict[str, int | str | None]:
        """The plan as plain data."""
        return asdict(self)


class Scheduler:
    """Runs sweeps: products of every live stream with its block, summed over the data.

    Attributes:
        plan: What was decided.
        head: The model's linear head, fused with its loss, if there is one.
    """

    def __init__(
        self,
        objective: Objective,
        partition: Partition,
        build: Build,
        *,
        microbatch: int | None = None,
        budget: int | None = None,
    ) -> None:
        """Plan from the largest batch.

        Args:
            objective: Loss and data.
            partition: Blocks.
            build: Makes the graph of one micro-batch.
            microbatch: Samples per micro-batch; None takes whole batches and splits them when they do not fit.
            budget: Bytes for graphs; None measures what is free.

        Raises:
            ConfigurationError: ``microbatch`` or ``budget`` is no positive number, or the batches cannot be split.
            OutOfMemoryError: Not even one sample fits into the budget.
        """
        if microbatch is not None and not (isinstance(microbatch, int) and microbatch >= 1):
            raise ConfigurationError(f"microbatch={microbatch!r} must be a whole number of at least 1.")
        if budget is not None and not (isinstance(budget, (int, float)) and budget > 0):
            raise ConfigurationError(f"memory={budget!r} must be a positive number of bytes.")
        self.objective = objective
        self._blocks = partition.blocks
        self._build = build
        self._kept: dict[tuple[int, int], ProductGraph] = {}
        self._keep = True  # until memory runs out
        self._whole = False  # every micro-batch of the data has its graph in _kept
        self.head: Head | None = None
        self._parameters: list[Tensor] = [objective.parameters[name] for name in partition.parameters]
        limit = memory.budget(objective.device) if budget is None else budget
        self.plan = Plan(microbatch, 1, 0, 0, limit)
        self._choose()

    def sweep(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Products of the objective's Hessian blocks with vectors.

        Args:
            vectors: (k, numel) per block, in the working dtype, on the model's device; k may differ between blocks.

        Returns:
            Products of the same shapes.

        Raises:
            OutOfMemoryError: One sample with one vector does not fit.
        """
        while True:
            try:
                return self._sweep(vectors)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0]
            self._give_way(reason)  # outside the handler: the traceback would keep the failed tensors alive

    def microbatches(self) -> Iterator[MicroBatch]:
        """The data cut into micro-batches, the same pieces in the same order every time."""
        for number, batch in self.objective.batches():
            size = batches.samples(batch)
            step = self.plan.microbatch
            if step is None or size is None or size <= step:
                yield MicroBatch((number, 0), batch)
                continue
            for start in range(0, size, step):
                yield MicroBatch((number, start), batches.cut(batch, start, min(start + step, size)))

    @property
    def working_bytes(self) -> int:
        """What building and using one graph needs at most."""
        return int(TRANSIENT * self.plan.graph_bytes)

    def reserve(self, size: int) -> None:
        """Leave ``size`` bytes of the budget to the caller (Lanczos vectors)."""
        self.plan.budget = max(self.working_bytes, self.plan.budget - size)

    def release(self) -> None:
        """Drop every kept graph."""
        self._kept.clear()
        self._whole = False
        self.plan.kept_graphs = 0

    def _sweep(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = 0.0
        with self.objective.arithmetic():
            out = {name: torch.zeros_like(v, memory_format=torch.contiguous_format) for name, v in vectors.items()}
            for graph in self._graphs():
                weight += graph.weight
                for name, block_vectors in vectors.items():
                    with _explained():
                        self._products(graph, self._blocks[name], block_vectors, out[name])
                del graph
        if weight <= 0:
            raise ObjectiveError("The weights of all batches sum to zero: every target is ignored.")
        for products in out.values():
            products.div_(weight)
        return out

    def _products(self, graph: ProductGraph, block: ResolvedBlock, vectors: Tensor, out: Tensor) -> None:
        streams = self.plan.streams_per_pass
        for start in range(0, vectors.shape[0], streams):
            stop = start + streams
            try:
                graph.product(block, vectors[start:stop], out[start:stop], batched=self.plan.streams_per_pass > 1)
            except RuntimeError as error:
                if self.plan.streams_per_pass == 1 or not re.search("vmap|[Bb]atching rule", str(error)):
                    raise
                # An operation of the model cannot be vmapped. Nothing was added to out: go on one vector at a time.
                log.info("single passes from here on: %s", str(error).splitlines()[0])
                self.plan.streams_per_pass = 1
                graph.product(block, vectors[start:stop], out[start:stop], batched=False)

    def _graphs(self) -> Iterator[ProductGraph]:
        """The graph of every micro-batch, built where it is not kept, kept where it fits."""
        if self._whole:
            yield from self._kept.values()
            return
        fits = self._room()
        complete = True
        for micro in self.microbatches():
            graph = self._kept.get(micro.key)
            if graph is None:
                with _explained():
                    graph = self._build(micro)
                if len(self._kept) < fits:
                    self._kept[micro.key] = graph
                    self.plan.kept_graphs = len(self._kept)
                else:
                    complete = False
            yield graph
            del graph
        self._whole = complete

    def _room(self) -> int:
        """How many graphs may stay alive, leaving room to build and use one more."""
        if not self._keep:
            return 0
        size = max(1, self.plan.graph_bytes)
        return max(0, int(self.plan.budget * GRAPH_SHARE) // size)

    def _choose(self) -> None:
        """Set micro-batch and streams per pass from the size of the largest batch's graph."""
        with self.objective.arithmetic():
            batch = self._largest()
            self.objective.check_deterministic(batch)
            self.head = fuse_head(self.objective, batch)
            size = batches.samples(batch)
            if self.plan.microbatch is not None and size is None and batch is not None:
                raise ConfigurationError(
                    "microbatch was given, but the tensors of a batch do not share their leading dimension; "
                    "split the data yourself or leave microbatch=None."
                )
            per_sample, fixed = self._measure(batch, size)
            wanted = min(size or 1, self.plan.microbatch or (size or 1))
            while wanted > 1 and TRANSIENT * (fixed + per_sample * wanted) > self.plan.budget:
                wanted = (wanted + 1) // 2
            if size is not None and wanted < size:
                self._check_split(batch, size)
                self.plan.microbatch = wanted
        self.plan.graph_bytes = int(fixed + per_sample * wanted)
        if self.working_bytes > self.plan.budget:
            raise OutOfMemoryError(
                f"The gradient graph of the smallest micro-batch needs about "
                f"{self.working_bytes / 2**30:.2g} GiB, the budget is {self.plan.budget / 2**30:.2g} GiB; "
                "use a smaller model or shorter sequences, activation checkpointing, or raise memory=."
            )
        self.plan.streams_per_pass = self._streams()
        log.info("plan: %s", self.plan)

    def _largest(self) -> object:
        return batches.largest(batch for _, batch in self.objective.batches())

    def _streams(self) -> int:
        room = BATCHED_BYTES if self.objective.device.type == "cpu" else self.plan.budget // 4
        return max(1, min(BATCHED_STREAMS, room // max(1, self.plan.graph_bytes)))

    def _measure(self, batch: object, size: int | None) -> tuple[float, float]:
        """Bytes per sample and fixed bytes, from graphs of one and two samples."""
        if size is None or size < 2:
            return 0.0, float(self._bytes(batch))
        try:
            one, two = self._bytes(batches.cut(batch, 0, 1)), self._bytes(batches.cut(batch, 0, 2))
        except ObjectiveError:  # a mean over a sample whose targets are all ignored, say; the whole batch tells too
            return self._bytes(batch) / size, 0.0
        slope = max(0.0, float(two - one))
        return slope, max(0.0, one - slope)

    def _bytes(self, batch: object) -> int:
        with memory.graph_size(self._parameters) as measured:
            with _explained():
                graph = self._build(MicroBatch((-1, 0), batch))
            size = measured.bytes
            del graph
        return size

    def _check_split(self, batch: object, size: int) -> None:
        """A mean that is not over samples (tokens, for instance) cannot be recombined: refuse instead of guessing."""
        half = (size + 1) // 2
        with torch.no_grad():
            whole, weight = self.objective.evaluate(batch)
            parts = [self.objective.evaluate(batches.cut(batch, a, b)) for a, b in ((0, half), (half, size))]
        mean = float(whole) / max(weight, 1e-300)
        recombined = sum(float(total) for total, _ in parts) / max(sum(w for _, w in parts), 1e-300)
        if abs(mean - recombined) > 1e-4 * max(abs(mean), abs(recombined), 1e-6):
            raise ConfigurationError(
                f"Splitting a batch of {size} changes the loss from {mean:.6g} to {recombined:.6g}: it is not a plain "
                "mean over samples. Return (total, weight) from the loss, for instance a sum over tokens and their "
                "count, or use hvp_engine.losses."
            )

    def _give_way(self, reason: str) -> None:
        """Need less memory next time: fewer streams, then no kept graphs, then smaller micro-batches."""
        plan = self.plan
        if plan.streams_per_pass > 1:
            plan.streams_per_pass //= 2
            log.warning("out of memory (%s): %d streams per pass from here on", reason, plan.streams_per_pass)
            return
        if self._kept:
            self._keep = False
            self.release()
            log.warning("out of memory (%s): gradient graphs are rebuilt every sweep from here on", reason)
            return
        batch = self._largest()
        size = batches.samples(batch)
        current = min(size or 1, plan.microbatch or (size or 1))
        if current <= 1:
            raise OutOfMemoryError(
                f"Out of memory with one sample and one vector at a time ({reason}); use a smaller model or shorter "
                "sequences, activation checkpointing (use_reentrant=False), or a machine with more memory."
            )
        with self.objective.arithmetic():
            self._check_split(batch, size or 1)
        plan.microbatch = (current + 1) // 2
        plan.graph_bytes = max(1, plan.graph_bytes * plan.microbatch // current)
        log.warning("out of memory (%s): micro-batches of %d from here on", reason, plan.microbatch)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what to do where autograd itself fails; a lack of memory is another's business."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        cause = str(error).splitlines()[0]
        fix = (
            "do not change tensors in place, neither in the model (mul_, index assignment, buffers) nor in the data"
            if "inplace" in cause
            else "hvp_engine.doctor names the operation"
        )
        raise SecondDerivativeError(f"A backward pass of this model failed ({cause}); {fix}.") from error
