"""The compiled products of one kept graph: which are made, whether they are right, and what serves where they are not.

A compiled product is made from two passes and checked against one of them, all with vectors of its own. So what it is
does not depend on the vectors that were multiplied before, nor on their number.
"""

from __future__ import annotations

import logging
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from hvp_engine.blocks import ResolvedBlock
from hvp_engine.operators.compiled.arena import Arena
from hvp_engine.operators.compiled.captured import Captures
from hvp_engine.operators.compiled.check import difference, probe
from hvp_engine.operators.compiled.record import Recorder
from hvp_engine.operators.compiled.replay import Layout, Replay
from hvp_engine.operators.compiled.simplify import simplified
from hvp_engine.problem.precision import Precision
from hvp_engine.scheduling.compiling import products_before_compiling
from hvp_engine.system.failures import is_out_of_memory

__all__ = ["CompiledProducts", "Compiler"]

log = logging.getLogger(__name__)

_COPIES = 4  # of the vectors, while a compiled product is checked: two probes, two products
_NO_ROOM = "what they keep would not fit into memory"

Kind = tuple[str, int | None]  # a block, and how many vectors pass at once; None for one vector in a pass of its own


class Pass(Protocol):
    """Adds products of a block by a backward pass."""

    def __call__(self, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, batched: bool) -> None:
        """Add the product with a vector (numel,), or with several, (k, numel), where ``batched``."""


class Compiler:
    """What the compiled products of an operator share.

    Attributes:
        precision: Arithmetic of the products.
        arithmetic: Makes the context of backward passes; replays have their own.
        expected: How many products of each block a job asks for; where they are many they are compiled at once. None
            where nobody knows.
        tell: Is told, in a few words, what is being compiled.
        arena: Where replays work.
        captures: What their launches are captured by, on a GPU.
        note: Why some products are not compiled, in words; None while all are.
    """

    def __init__(
        self, precision: Precision, arithmetic: Callable[[], AbstractContextManager[None]], room: Callable[[], int]
    ) -> None:
        """Begin without any.

        Args:
            precision: Arithmetic of the products.
            arithmetic: Makes the context of backward passes.
            room: Tells the bytes that constants and the memory of replays may take.
        """
        self.precision = precision
        self.arithmetic = arithmetic
        self.expected: Mapping[str, int] | None = None
        self.tell: Callable[[str], object] = log.debug
        self.arena = Arena()
        self.captures = Captures()
        self.note: str | None = None
        self._room = room
        self._alive: weakref.WeakSet[Replay] = weakref.WeakSet()

    def pays(self, block: str, asked: int, device: torch.device) -> bool:
        """Say whether to compile a product of a block when it is asked for, the first time, the second, and so on."""
        expected = None if self.expected is None else self.expected.get(block, 0)
        return asked > products_before_compiling(expected, device)

    def has_room(self, like: Tensor, layout: Layout | None = None) -> bool:
        """Say whether there is room to compile a product with vectors, and for what it keeps, where that is known."""
        taken = sum(kept.bytes for kept in self._alive) + _COPIES * like.nbytes
        needed = self.arena.size if layout is None else max(self.arena.size, layout.size) + layout.constants
        return taken + needed <= self._room()

    def keep(self, replay: Replay) -> None:
        """Take a replay among those that are kept."""
        self._alive.add(replay)

    def refuse(self, block: str, why: str) -> None:
        """Note why products are not compiled; say so the first time."""
        if self.note is None:
            self.note = f"products with block {block!r} are not compiled: {why}"
            log.info(self.note)


class CompiledProducts:
    """Compiled products with the blocks of one graph, each made when it has been asked for often enough."""

    def __init__(self, compiler: Compiler) -> None:
        """Begin without any.

        Args:
            compiler: What all graphs share.
        """
        self._compiler = compiler
        self._asked: dict[Kind, int] = {}
        self._made: dict[Kind, Replay | None] = {}

    def add(self, add: Pass, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, batched: bool) -> None:
        """Add products, by what was compiled if that can serve.

        Args:
            add: The graph's own pass; not kept, or the graph would keep itself.
            block: The block.
            vectors: (numel,), or (k, numel) where ``batched``.
            out: Of that shape.
            batched: Whether several vectors pass at once.
        """
        kind = block.name, vectors.shape[0] if batched else None
        replay = self._made.get(kind)
        if replay is None and kind not in self._made:
            asked = self._asked[kind] = self._asked.get(kind, 0) + 1
            if self._compiler.pays(block.name, asked, vectors.device):
                with self._compiler.arithmetic():
                    replay = self._made[kind] = self._compiled(add, block, vectors, batched=batched)
        if replay is not None and replay.is_current:
            replay.run(vectors, out)
            return
        with self._compiler.arithmetic():  # where a constant was written to, the pass says so
            add(block, vectors, out, batched=batched)

    def _compiled(self, add: Pass, block: ResolvedBlock, vectors: Tensor, *, batched: bool) -> Replay | None:
        """Compile; None where that is not possible, takes too much memory, or gives another product."""
        self._compiler.tell(f"compiling products with block {block.name!r}")
        begun = time.perf_counter()
        try:
            replay = self._checked(add, block, vectors, batched=batched)
            log.info("compiling products with block %r took %.2f s", block.name, time.perf_counter() - begun)
            return replay
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._compiler.refuse(block.name, "there is not enough memory")
        return None

    def _checked(self, add: Pass, block: ResolvedBlock, like: Tensor, *, batched: bool) -> Replay | None:
        compiler = self._compiler
        if not compiler.has_room(like):
            compiler.refuse(block.name, _NO_ROOM)
            return None
        vectors = probe(like, 0)
        recorder = Recorder(vectors, out := torch.zeros_like(vectors))
        with recorder:
            add(block, vectors, out, batched=batched)
        if recorder.obstacle is not None:
            compiler.refuse(block.name, recorder.obstacle)
            return None
        tape = simplified(recorder.tape())
        layout = Layout.of(tape)
        if not compiler.has_room(like, layout):
            compiler.refuse(block.name, _NO_ROOM)
            return None
        replay = Replay(tape, layout, compiler.arena, vectors.shape)
        compiler.keep(replay)
        vectors, expected, found = probe(like, 1), out.zero_(), torch.zeros_like(out)
        add(block, vectors, expected, batched=batched)
        replay.run(vectors, found)
        if found.is_cuda:  # what is launched from now on is what is checked
            replay.capture(compiler.captures)
            replay.run(vectors, found.zero_())
        worst = difference(block, found, expected, compiler.precision)
        if worst is not None:
            compiler.refuse(block.name, f"they differ from a backward pass's by {worst:.1g}")
            warnings.warn(
                f"The compiled product with block {block.name!r} differs from that of a backward pass (relative "
                f"difference {worst:.1g}), and is not used; products are right, and slower than they might be.",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return replay
