"""Backward passes on shapes, node by node: what a kind of node does is run once and looked up from then on.

A plan asks for one second backward pass per block, each through thousands of nodes; yet a network of equal layers has
few kinds of nodes. So a pass is gone through as autograd's engine would, in its order and pruned like it, but what a
node does with gradients of certain shapes (the operations that it runs, the shapes that it returns, the memory that it
takes meanwhile) comes from the first node of its kind, which autograd ran alone. Counts and peaks are the pass's own.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from hvp_engine.ops.head.lazy_logits import FusedHead
from hvp_engine.planning.meter import Meter, Operation
from hvp_engine.planning.node_kinds import Shape, is_generated, kind_of_node
from hvp_engine.planning.shapes import NATIVE, Backends, ShapesOnly
from hvp_engine.system.torch_nodes import ends_of_node, order_of_node
from hvp_engine.system.torch_private import storage_key

_KEPT = -1  # memory that was there before the node ran, and is not that of an incoming gradient


class NotReplayableError(Exception):
    """A pass does what single nodes do not show: it has to be run."""


class _SeenError(Exception):
    """A node has run, which is all that was wanted."""


@dataclass(frozen=True)
class _Step:
    """What a node does.

    Attributes:
        operations: What it runs.
        outputs: Number of each returned gradient's shape, None where there is none.
        memory: Whose memory each lies in: an incoming gradient's by its place, new memory from -2 downwards.
        sizes: Bytes of new memory.
        peak: Bytes of new memory alive at once at most while it runs.
    """

    operations: Counter[Operation]
    outputs: tuple[int | None, ...]
    memory: tuple[int, ...]
    sizes: dict[int, int]
    peak: int


@dataclass(eq=False)
class _Memory:
    """Memory of gradients on their way: it is given back with the last of them."""

    bytes: int
    holders: int = 0


_Passed = tuple[tuple[int, int], "int | None", _Memory]  # node and place there, shape, memory


@dataclass(eq=False)
class _Known:
    """A node of the graph: its place in the order of execution, where its results go, and its kind."""

    node: Node
    order: int
    ends: Sequence[Any]
    after: tuple[tuple[int, int] | None, ...] = ()
    before: list[int] = field(default_factory=list)
    kind: int = -1


@dataclass(eq=False)
class _Pass:
    """One pass on its way."""

    needed: set[int]
    ends: set[int]
    slots: dict[int, dict[int, tuple[int, _Memory]]] = field(default_factory=dict)
    waiting: list[tuple[int, int]] = field(default_factory=list)
    done: Counter[tuple[Hashable, ...]] = field(default_factory=Counter)
    alive: int = 0
    peak: int = 0

    def hold(self, memory: _Memory) -> _Memory:
        """Keep a piece of memory once more."""
        if not memory.holders:
            self.alive += memory.bytes
        memory.holders += 1
        return memory

    def drop(self, memory: _Memory) -> None:
        """Keep it once less."""
        memory.holders -= 1
        if not memory.holders:
            self.alive -= memory.bytes


class Replay:
    """Goes through backward passes of graphs that stay, while tensors have no data and a meter counts."""

    def __init__(self, meter: Meter, run: Callable[..., tuple[Tensor | None, ...]]) -> None:
        """Take what counts.

        Args:
            meter: It is entered while passes are gone through.
            run: torch.autograd.grad.
        """
        self._meter, self._run_pass = meter, run
        self._known: list[_Known] = []
        self._places: dict[Node, int] = {}
        self._kinds: dict[Hashable, int] = {}
        self._shapes: dict[Shape, int] = {}
        self._numbered: list[Shape] = []
        self._steps: dict[tuple[Hashable, ...], _Step] = {}

    def grad(
        self,
        outputs: Sequence[Tensor | GradientEdge],
        inputs: Sequence[Tensor | GradientEdge],
        vectors: Sequence[Tensor],
    ) -> tuple[Tensor | None, ...]:
        """Count a pass as torch.autograd.grad would run it, with ``retain_graph`` and ``allow_unused``.

        Raises:
            NotReplayableError: The pass has to be run; nothing was counted.
        """
        begins, ends = list(map(_edge, outputs)), list(map(_edge, inputs))
        self._learn([edge.node for edge in (*begins, *ends)])
        targets = [(self._places[edge.node], edge.output_nr) for edge in ends]
        now = _Pass(self._above({place for place, _ in targets}), {place for place, _ in targets})
        for edge, vector in zip(begins, vectors, strict=True):
            place = self._places[edge.node]
            end = self._known[place].ends[edge.output_nr]
            if (tuple(vector.shape), vector.dtype) != (tuple(end.shape), end.dtype):
                raise NotReplayableError
            if place in now.needed or place in now.ends:
                self._enter(now, place, edge.output_nr, self._number(Shape.of(vector)), now.hold(_Memory(0)))
        captured: dict[tuple[int, int], int] = {}
        while now.waiting:
            place = heapq.heappop(now.waiting)[1]
            slots = now.slots.pop(place)
            if place in now.ends:
                captured |= {(place, slot): shape for slot, (shape, _) in slots.items()}
                for _, memory in slots.values():
                    now.hold(memory)  # to the end of the pass
            made = self._execute(now, place, slots) if place in now.needed else []
            for _, memory in slots.values():  # autograd gives them back before it passes on what came of them
                now.drop(memory)
            for after, shape, memory in made:
                self._enter(now, *after, shape, memory)
        self._count(now)
        return tuple(self._numbered[captured[target]].make() if target in captured else None for target in targets)

    def _count(self, now: _Pass) -> None:
        self._meter.reach(now.peak)
        operations = self._meter.work.operations
        for key, times in now.done.items():
            for operation, count in self._steps[key].operations.items():
                operations[operation] += times * count

    def _execute(self, now: _Pass, place: int, slots: dict[int, tuple[int, _Memory]]) -> list[_Passed]:
        """Do what a node does; return what goes where, each with its memory held."""
        known = self._known[place]
        wanted = tuple(a is not None and (a[0] in now.needed or a[0] in now.ends) for a in known.after)
        given = tuple(slots[slot][0] if slot in slots else None for slot in range(len(known.ends)))
        key = (self._kind(known), given, wanted)
        step = self._steps.get(key) or self._run(key, known, given, wanted)
        now.done[key] += 1
        now.peak = max(now.peak, now.alive + step.peak)
        made = {number: _Memory(size) for number, size in step.sizes.items()}
        passed: list[_Passed] = []
        for after, wants, shape, source in zip(known.after, wanted, step.outputs, step.memory, strict=True):
            if wants and after is not None:
                memory = slots[source][1] if source >= 0 else made.get(source) or _Memory(0)
                passed.append((after, shape, now.hold(memory)))
        return passed

    def _enter(self, now: _Pass, place: int, slot: int, shape: int | None, memory: _Memory) -> None:
        """Pass a gradient on to a node, added to what is there; its memory is held."""
        if place not in now.slots:
            now.slots[place] = {}
            heapq.heappush(now.waiting, (-self._known[place].order, place))
        slots = now.slots[place]
        if shape is None:
            now.drop(memory)
            return
        if slot not in slots:
            slots[slot] = shape, memory
            return
        there, old = slots[slot]
        key = ("add", there, shape)
        step = self._steps.get(key) or self._add(key, there, shape)
        now.done[key] += 1
        assert step.outputs[0] is not None
        total = now.hold(_Memory(step.sizes[-2]))
        now.peak = max(now.peak, now.alive)
        now.drop(memory)
        now.drop(old)
        slots[slot] = step.outputs[0], total

    def _learn(self, roots: list[Node]) -> None:
        """Look at the nodes behind some, once."""
        pending, first = list(roots), len(self._known)
        while pending:
            node = pending.pop()
            if node in self._places:
                continue
            order, ends = order_of_node(node), ends_of_node(node)
            if order is None or ends is None:
                raise NotReplayableError
            self._places[node] = len(self._known)
            self._known.append(_Known(node, order if node.next_functions else -1, ends))  # leaves wait for all
            pending += [after for after, _ in node.next_functions if after is not None]
        for place in range(first, len(self._known)):
            known = self._known[place]
            known.after = tuple(
                None if after is None else (self._places[after], slot) for after, slot in known.node.next_functions
            )
            for after_place in {a[0] for a in known.after if a is not None}:
                after = self._known[after_place]
                # Autograd executes what was created last first; on one thread that is an order of the graph, too.
                if after.order >= known.order and after.node.next_functions:
                    raise NotReplayableError
                after.before.append(place)

    def _above(self, ends: set[int]) -> set[int]:
        """Return the nodes from which one of some nodes is reached."""
        above: set[int] = set()
        pending = list(ends)
        while pending:
            for place in self._known[pending.pop()].before:
                if place not in above:
                    above.add(place)
                    pending.append(place)
        return above

    def _kind(self, known: _Known) -> int:
        if known.kind < 0:
            with self._meter.aside() as aside:
                aside.begin()
                kind = kind_of_node(known.node)
                if aside.end().operations:  # what it keeps is computed when it is looked at
                    raise NotReplayableError
            known.kind = self._kinds.setdefault(kind, len(self._kinds))
        return known.kind

    def _number(self, shape: Shape) -> int:
        if shape not in self._shapes:
            self._shapes[shape] = len(self._numbered)
            self._numbered.append(shape)
        return self._shapes[shape]

    def _add(self, key: tuple[Hashable, ...], first: int, second: int) -> _Step:
        """Let two gradients be added, as autograd adds those that arrive at one place."""
        with torch.no_grad(), self._meter.aside() as aside:
            one, other = self._numbered[first].make(), self._numbered[second].make()
            aside.begin()
            total = one + other
            seen = aside.end()
        self._steps[key] = step = _Step(
            seen.operations, (self._number(Shape.of(total)),), (-2,), {-2: seen.peak}, seen.peak
        )
        return step

    def _run(
        self, key: tuple[Hashable, ...], known: _Known, given: tuple[int | None, ...], wanted: tuple[bool, ...]
    ) -> _Step:
        """Let autograd run one node, and see what it does."""
        slots = [slot for slot, shape in enumerate(given) if shape is not None]
        if not slots:
            if not is_generated(known.node):
                raise NotReplayableError
            step = _Step(Counter(), (None,) * len(wanted), (_KEPT,) * len(wanted), {}, 0)  # zero comes of zero
            return self._steps.setdefault(key, step)
        found: list[_Step] = []
        after = known.node.next_functions
        ends = (GradientEdge(*a) for a, wants in zip(after, wanted, strict=True) if wants)  # type: ignore[arg-type]
        with self._meter.aside() as aside:
            vectors = [self._numbered[shape].make() for shape in given if shape is not None]

            def look(results: tuple[Tensor | None, ...], _: tuple[Tensor | None, ...]) -> None:
                found.append(self._seen(aside, vectors, slots, results))
                raise _SeenError  # or autograd would go on, from one of the node's ends to another

            handles = known.node.register_prehook(lambda _: aside.begin()), known.node.register_hook(look)
            try:
                self._run_pass(
                    [GradientEdge(known.node, slot) for slot in slots],
                    list(dict.fromkeys(ends)),
                    vectors,
                    retain_graph=True,
                    allow_unused=True,
                )
            except _SeenError:
                pass
            finally:
                for handle in handles:
                    handle.remove()
        if not found or aside.differentiated or len(found[0].outputs) != len(wanted):
            raise NotReplayableError
        self._steps[key] = found[0]
        return found[0]

    def _seen(self, aside: Any, vectors: list[Tensor], slots: list[int], results: Sequence[Tensor | None]) -> _Step:
        seen = aside.end()
        sources = {storage_key(v.untyped_storage()): slot for v, slot in zip(vectors, slots, strict=True)}
        sizes: dict[int, int] = {}
        memory: list[int] = []
        for result in results:
            if result is not None and result.layout != torch.strided:
                raise NotReplayableError
            storage = None if result is None else result.untyped_storage()
            place = _KEPT if storage is None else storage_key(storage)
            if storage is not None and place not in sources:
                sources[place] = -2 - len(sizes) if aside.is_new(place) else _KEPT
                if sources[place] != _KEPT:
                    sizes[sources[place]] = storage.nbytes()
            memory.append(_KEPT if storage is None else sources[place])
        outputs = tuple(None if r is None else self._number(Shape.of(r)) for r in results)
        return _Step(seen.operations, outputs, tuple(memory), sizes, seen.peak)


def _edge(end: Tensor | GradientEdge) -> GradientEdge:
    return get_gradient_edge(end) if isinstance(end, Tensor) else end


def _stays(
    grad_outputs: object = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
    **_: object,
) -> bool:
    """Say whether a pass is as :class:`Replay` goes through them, by the arguments of torch.autograd.grad."""
    known = isinstance(grad_outputs, (list, tuple)) and all(isinstance(vector, Tensor) for vector in grad_outputs)
    return bool(known and retain_graph and allow_unused) and not (create_graph or is_grads_batched or materialize_grads)


class ReplayedPasses(ShapesOnly):
    """Runs a model on shapes, and goes through second backward passes node by node where that shows what they do."""

    def __init__(self, meter: Meter, head: FusedHead | None = None, backends: Backends = NATIVE) -> None:
        super().__init__(meter, head, backends)
        run = partial(super().__torch_function__, torch.autograd.grad, ())
        self._replay: Replay | None = Replay(meter, lambda *args, **kwargs: run(args, kwargs))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one intercepted call, or go through it."""
        asked = kwargs or {}
        if func is torch.autograd.grad and self._replay is not None and len(args) == 2 and _stays(**asked):
            try:
                outputs, inputs = args
                return self._replay.grad(outputs, inputs, asked["grad_outputs"])
            except NotReplayableError:
                self._replay = None  # nor are the other passes of this graph
        return super().__torch_function__(func, types, args, kwargs)
