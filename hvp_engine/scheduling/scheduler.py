"""Order of loops: one gradient graph per micro-batch serves all blocks and all streams.

A sweep goes over the data once. Graphs are kept between sweeps while the memory budget allows; one that is not kept
serves the blocks of its sweep alone, which spares the others' share of the first backward pass. What fits is decided by
:mod:`hvp_engine.scheduling.policy`, from sizes alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvp_engine.blocks import Partition, ResolvedBlock
from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.allocator import retained_heap
from hvp_engine.problem import batches
from hvp_engine.problem.objective import MicroBatch, Objective
from hvp_engine.problem.weights import check_split, check_sum_of_weights
from hvp_engine.scheduling import policy
from hvp_engine.scheduling.backing_off import smaller_pieces
from hvp_engine.scheduling.compiling import COMPILE_AFTER
from hvp_engine.scheduling.graph_sizes import GraphSizes
from hvp_engine.scheduling.groups import Groups
from hvp_engine.scheduling.passes import Key, Passes, ProductGraph, Scaling, arithmetic_around, zeros_like
from hvp_engine.scheduling.share import Share, microbatches
from hvp_engine.scheduling.sure import fits_for_sure
from hvp_engine.scheduling.sweep_plan import SweepPlan
from hvp_engine.system.failures import is_out_of_memory, let_go
from hvp_engine.system.formatting import first_line
from hvp_engine.system.torch_private import suspended_torch_functions

log = logging.getLogger(__name__)

T = TypeVar("T")
Build = Callable[[MicroBatch], ProductGraph]


class Scheduler:
    """Runs sweeps: products of every live stream with its block, summed over the data.

    Where graphs of all batches fit whatever they are like, nothing is measured before something asks for the plan:
    single products take whole batches and one vector in any plan.

    Attributes:
        objective: Loss and data.
        groups: Parts of the data that no micro-batch crosses, see :meth:`divide`; None where there are none.
        share: This process's part of the data, see :meth:`take`; None for all of it.
        scaling: What scales the blocks from both sides; None where nothing does.
    """

    def __init__(
        self,
        objective: Objective,
        partition: Partition,
        build: Build,
        largest: Any,
        *,
        microbatch: int | None = None,
        budget: int,
        beside: int = 0,
    ) -> None:
        """Plan from the largest batch, or put that off; call inside the objective's arithmetic.

        Args:
            objective: Loss and data.
            partition: Blocks.
            build: Makes the graph of one micro-batch.
            largest: The data's largest batch.
            microbatch: Samples per micro-batch, at least 1; None takes whole batches and splits them when they do not
                fit.
            budget: Bytes for graphs, above 0.
            beside: Bytes that passes take whatever the graph, see :class:`hvp_engine.scheduling.policy.GraphSize`.

        Raises:
            ConfigurationError: The batches cannot be split.
            OutOfMemoryError: Not even one sample fits into the budget.
        """
        self.objective = objective
        self._blocks = partition.blocks
        self._build = build
        self._kept: dict[tuple[int, int], ProductGraph] = {}
        self._keep = True  # until memory runs out
        self._most_streams = policy.BATCHED_STREAMS  # fewer once memory ran out
        self._all_kept = False  # every micro-batch of the data has its graph in _kept
        # By the blocks that a graph serves: a resumed job did not see those that were there before.
        self._passes: dict[frozenset[str] | None, Passes] = {}
        self._parameters: list[Tensor] = list(objective.parameters_named(partition.parameters).values())
        self._sizes = GraphSizes(objective, build, self._parameters, beside)
        self._graph_size = policy.GraphSize(0.0, beside=beside)
        self.groups: Groups | None = None
        self.share: Share | None = None
        self.scaling: Scaling | None = None
        self._plan = SweepPlan(microbatch, 1, 0, 0, budget)
        self._budget = budget  # of graphs and vectors together
        self._unplanned, self._sweeps = [largest], 0
        if microbatch is not None or not fits_for_sure(objective, largest, self._parameters, budget):
            self.settle()

    @property
    def plan(self) -> SweepPlan:
        """What was decided, from sizes alone; measured now where single products did without."""
        self.settle()
        return self._plan

    @torch.inference_mode(False)
    def settle(self) -> None:
        """Plan, where that was put off."""
        if not self._unplanned:
            return
        largest = self._unplanned.pop()
        try:
            with retained_heap(), self.objective.arithmetic():
                self._choose(largest)
        except BaseException:
            self._unplanned = [largest]
            raise

    def sweep(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply vectors by the objective's Hessian blocks.

        Args:
            vectors: (k, numel) per block, in the working dtype, on the model's device; k may differ between blocks.

        Returns:
            Products of the same shapes.

        Raises:
            OutOfMemoryError: One sample with one vector does not fit.
        """
        self._sweeps += 1
        if self._sweeps >= COMPILE_AFTER or any(len(of_block) > 1 for of_block in vectors.values()):
            self.settle()  # what compiled products may keep, how many vectors go through one pass
        (out,), (weight,) = self._sums([vectors], lambda _: 0)
        for products in out.values():
            products.div_(weight)
        return out

    def divide(self, groups: Groups, most: int | None) -> None:
        """Keep groups of the data apart: from here on no micro-batch crosses from one to the next.

        Args:
            groups: The groups; batches that they cut were seen to recombine
                (:func:`hvp_engine.problem.weights.check_split`).
            most: Samples of the largest piece; None where no batch is cut.
        """
        self.groups = groups
        self._cut(most)

    def take(self, share: Share, most: int | None) -> None:
        """Multiply by a part of the data from here on, and add up with the other processes.

        Args:
            share: The part.
            most: As for :meth:`divide`.
        """
        self.share = share
        self._cut(most)

    def _cut(self, most: int | None) -> None:
        """Take pieces of so many samples at most."""
        self.release()
        if most is not None and (self.plan.microbatch is None or most < self.plan.microbatch):
            self.plan.microbatch = most
            self._size_passes(most)

    def sweep_apart(
        self, vectors: Sequence[Mapping[str, Tensor]], part: Callable[[int], int]
    ) -> tuple[list[dict[str, Tensor]], list[float]]:
        """Multiply vectors by what parts of the data add to the Hessian blocks, in one pass over the data.

        Args:
            vectors: For each part as in :meth:`sweep`; parts may share them.
            part: Which part a group of :attr:`groups` belongs to.

        Returns:
            Per part the products, and the weight of its samples, by which they are not divided.

        Raises:
            OutOfMemoryError: One sample with one vector does not fit.
        """
        groups = self.groups
        if groups is None:
            raise ConfigurationError("Products of groups need groups: divide the data before.")
        return self._sums(vectors, lambda key: part(groups.of(key)))

    def within_memory(self, work: Callable[[], T]) -> T:
        """Do some work on the micro-batches, again with smaller pieces where memory runs out.

        Raises:
            OutOfMemoryError: One sample with one vector does not fit.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            let_go(None)  # outside the handler: the traceback would keep the failed tensors alive
            self._need_less(reason)

    def microbatches(self) -> Iterator[MicroBatch]:
        """Cut the data, or this process's share, into micro-batches, the same pieces in the same order every time."""
        return microbatches(self.objective, self._plan.microbatch, self.groups, self.share)

    def first_microbatch(self) -> MicroBatch:
        """Return the first micro-batch of all the data, whoever's share it is in."""
        return next(microbatches(self.objective, self._plan.microbatch, self.groups, None))

    def first_graph(self) -> ProductGraph:
        """Build the graph of the first micro-batch as a sample; call inside the objective's arithmetic."""
        return self._build(replace(self.first_microbatch(), is_sample=True))

    @property
    def working_bytes(self) -> int:
        """What building and using one graph needs at most."""
        graph_bytes = self.plan.graph_bytes  # measures, if need be, what follows
        return int(self._graph_size.transient * graph_bytes) + self._graph_size.beside

    @property
    def may_keep(self) -> int:
        """How many graphs may stay alive between sweeps."""
        if self._unplanned:
            return max(1, len(self.objective.layouts))
        plan, gradient = self._plan, sum(p.nbytes for p in self._parameters)
        return policy.count_kept_graphs(plan.graph_bytes, gradient, self.working_bytes, plan.budget)

    def make_room(self, stream_bytes: int) -> None:
        """Halve the micro-batches until the vectors of one stream fit beside a graph.

        Raises:
            ConfigurationError: The batches cannot be split.
        """
        largest = self.objective.largest_batch()
        size = batches.samples(largest)
        now = size if self.plan.microbatch is None or size is None else min(size, self.plan.microbatch)
        wanted = policy.make_room(self._graph_size, now, self.plan.budget, stream_bytes)
        if wanted == now or size is None or wanted is None:
            return
        with self.objective.arithmetic():
            check_split(self.objective, wanted)
        self.release()
        self.plan.microbatch = wanted
        self._size_passes(wanted)

    def reserve(self, size: int) -> None:
        """Leave ``size`` bytes of the whole budget to the caller (Lanczos vectors), in place of those left before.

        Passes then carry no more vectors than the rest has room for.
        """
        plan = self.plan
        plan.budget = policy.budget_of_graphs(self._budget, self.working_bytes, size)
        plan.streams_per_pass = min(self._streams_with(0), self._most_streams)
        if plan.kept_graphs > self.may_keep:
            self.release()

    def release(self) -> None:
        """Drop every kept graph."""
        self._kept.clear()
        self._passes.clear()
        self.objective.held_data.release()
        self._all_kept = False
        self._sweeps = 0
        self._plan.kept_graphs = 0

    def _sums(
        self, vectors: Sequence[Mapping[str, Tensor]], part: Callable[[Key], int]
    ) -> tuple[list[dict[str, Tensor]], list[float]]:
        """Multiply by the sums over the micro-batches of each part of the data; return the parts' weights too."""
        out, weights = self.within_memory(lambda: self._own_sums(vectors, part))
        if self.share is not None:  # not before: where memory runs out, a process alone tries again
            weights = self.share.total(out, weights)
        check_sum_of_weights(self.objective, sum(weights))
        return out, weights

    def _own_sums(
        self, vectors: Sequence[Mapping[str, Tensor]], part: Callable[[Key], int]
    ) -> tuple[list[dict[str, Tensor]], list[float]]:
        """Do so with this process's part of the data."""
        weights = [0.0] * len(vectors)
        with arithmetic_around(self._kept.values() if self._all_kept else (), self.objective):
            out = [zeros_like(of_part) for of_part in vectors]
            for key, graph, passes in self._graphs({name for of_part in vectors for name in of_part}):
                of = part(key)
                weights[of] += graph.weight
                with suspended_torch_functions():
                    for name, block_vectors in vectors[of].items():
                        self._products(key, graph, passes, self._blocks[name], block_vectors, out[of][name])
                if self._plan.single_passes is None and passes.note is not None:
                    self._plan.single_passes = passes.note
                    log.warning("slower than it might be: %s", passes.note)
                del graph
        if self.scaling is not None:
            for of_part in out:
                for name, products in of_part.items():
                    self.scaling.scale(name, products)
        return out, weights

    def _products(
        self, key: Key, graph: ProductGraph, passes: Passes, block: ResolvedBlock, vectors: Tensor, out: Tensor
    ) -> None:
        streams = self._streams_of(block) if len(vectors) > 1 else 1
        for start in range(0, vectors.shape[0], streams):
            stop = start + streams
            part = vectors[start:stop]
            if self.scaling is not None:  # here, not before the sweep: a pass is all that has to fit twice
                part = self.scaling.scaled(block, part)
            passes.multiply(key, graph, block, part, out[start:stop])

    def _graphs(self, blocks: Iterable[str]) -> Iterator[tuple[Key, ProductGraph, Passes]]:
        """Yield the graph of every micro-batch, built where it is not kept, kept where it fits, for all blocks then.

        Args:
            blocks: The blocks that it has to serve now.
        """
        of_all = self._passes_of(None)
        if self._all_kept:
            for key, graph in self._kept.items():
                yield key, graph, of_all
            return
        asked = frozenset(blocks)
        served = asked if asked and asked < self._blocks.keys() else None
        complete = True
        for micro in self.microbatches():
            kept = self._kept.get(micro.key)
            if kept is None and self._keep and len(self._kept) < self.may_keep:
                kept = self._kept[micro.key] = self._build(replace(micro, is_kept=True))
                self.objective.held_data.hold(micro.key, micro.batch)
                self._plan.kept_graphs = len(self._kept)
            if kept is not None:
                yield micro.key, kept, of_all
            else:
                complete = False
                yield micro.key, self._build(replace(micro, blocks=served)), self._passes_of(served)
        self._all_kept = complete

    def _passes_of(self, served: frozenset[str] | None) -> Passes:
        """Return what is known of graphs that serve some blocks, all of them for None."""
        return self._passes.setdefault(served, Passes(self.objective.precision))

    def _choose(self, largest: Any) -> None:
        """Set micro-batch and streams per pass from the size of the largest batch's graph."""
        plan, size = self._plan, batches.samples(largest)
        if plan.microbatch is not None and size is None and largest is not None:
            raise ConfigurationError(
                "microbatch was given, but the tensors of a batch do not share their leading dimension; "
                "split the data yourself or leave microbatch=None."
            )
        self._graph_size = graph = self._sizes.measured(largest, size)
        wanted = policy.choose_microbatch(graph, size, plan.budget, plan.microbatch)
        if size is not None and wanted is not None and wanted < size:
            check_split(self.objective, wanted)
            if self._kept:
                self.release()
            plan.microbatch = wanted
        self._size_passes(wanted)

    def _size_passes(self, microbatch: int | None) -> None:
        """Set what follows from the size of a micro-batch."""
        plan = self._plan
        plan.graph_bytes = self._graph_size.of(microbatch)
        plan.streams_per_pass = min(self._streams_with(0), self._most_streams)
        log.info("plan: %s", plan)

    def _streams_of(self, block: ResolvedBlock) -> int:
        """Return how many vectors of a block go through one pass."""
        return min(self._streams_with(block.numel * self.objective.dtype.itemsize), self._plan.streams_per_pass)

    def _streams_with(self, vector_bytes: int) -> int:
        plan, on_cpu = self.plan, self.objective.device.type == "cpu"
        return policy.choose_streams_per_pass(plan.graph_bytes, vector_bytes, plan.budget, on_cpu=on_cpu)

    def transient_in(self, dtype: torch.dtype) -> float:
        """Return what a graph takes with the temporaries of its passes, in units of the graph, in a working dtype."""
        self.settle()
        return self._sizes.transient_in(dtype)

    def _need_less(self, reason: str) -> None:
        """Need less memory next time: fewer streams, then no kept graphs, then smaller micro-batches."""
        plan = self.plan
        if plan.streams_per_pass > 1:
            plan.streams_per_pass = self._most_streams = plan.streams_per_pass // 2
            log.warning("out of memory (%s): %d streams per pass from here on", reason, plan.streams_per_pass)
            return
        if self._kept:
            self._keep = False
            self.release()
            log.warning("out of memory (%s): gradient graphs are rebuilt every sweep from here on", reason)
            return
        current, smaller = smaller_pieces(self.objective, plan.microbatch, reason)
        self.release()  # nothing is kept; what was learnt belongs to other micro-batches
        plan.microbatch = smaller
        plan.graph_bytes = max(1, plan.graph_bytes * smaller // current)
        log.warning("out of memory (%s): micro-batches of %d from here on", reason, smaller)
