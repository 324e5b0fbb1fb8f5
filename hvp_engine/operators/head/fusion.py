"""The head of one objective, fused with its loss: the only writer of what serves the objective's losses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from hvp_engine.operators.head.find import LinearHead, find_head
from hvp_engine.operators.head.shelf import Shelf
from hvp_engine.operators.head.store import CurvatureStore
from hvp_engine.ops.head.lazy_logits import FusedHead
from hvp_engine.problem.objective import MicroBatch, Objective
from hvp_engine.scheduling.policy import CurvaturePlan
from hvp_engine.system.progress import ProgressReporter

Key = tuple[int, int]


class HeadFusion:
    """Computes the loss behind a linear head without the graph of the logits, and with the head's curvature if formed.

    Attributes:
        head: The head; None where the model has none, and nothing is fused.
        outcome: Storage, place, measured error and losses of the head's curvature, in words; None where it was not
            formed.
    """

    def __init__(self, objective: Objective, batch: Any, plain: float | None = None, *, search: bool = True) -> None:
        """Find the head and fuse it.

        Args:
            objective: Loss, model and data.
            batch: A batch of the data.
            plain: Its first samples' loss without a head, where that is known.
            search: False takes the model as one without a head.
        """
        self._fused = objective.fused
        self._objective = objective
        self.head: LinearHead | None = find_head(objective, batch, self._serving, plain) if search else None
        self.outcome: str | None = None
        self._store: CurvatureStore | None = None
        if self.head is not None:
            self._fused.head = FusedHead(self.head.weight, keep_logits=True)

    @property
    def formed(self) -> bool:
        """Whether the head's curvature serves."""
        return self._store is not None

    @property
    def held_bytes(self) -> int:
        """Memory that the curvature takes, where it is in memory."""
        return 0 if self._store is None else self._store.plan.memory_bytes

    def form(
        self,
        plan: CurvaturePlan,
        microbatches: Callable[[], Iterator[MicroBatch]],
        progress: bool | None,
        tolerance: float,
        shelf: Shelf | None = None,
    ) -> None:
        """Form the head's curvature for every micro-batch; keep it if it is as accurate as its storage promises.

        Args:
            plan: Where the matrices go.
            microbatches: The data, cut as sweeps will cut it.
            progress: True shows progress, False hides it, None shows it on a terminal.
            tolerance: What dropping classes may change, see
                :func:`hvp_engine.ops.head.curvature.form_head_curvature`.
            shelf: Keeps them for a resumed job, and has those of an earlier run; None keeps none.
        """
        assert self.head is not None
        general = self._fused.head
        store = CurvatureStore(self.head.weight, plan, tolerance, shelf)
        self._fused.head = self._store = store
        try:
            with self._objective.arithmetic():  # gradients are on: a loss may need some inside
                total = sum(1 for _ in microbatches())
                with ProgressReporter("head curvature", 100 * total, progress) as reporter:
                    for number, micro in enumerate(microbatches()):
                        store.report = partial(_reach, reporter, number)
                        with store.using(micro.key):
                            self._objective.evaluate(micro.batch)
        finally:
            store.report = None
            if shelf is not None:
                shelf.flush()
        self.outcome = str(store)
        if not store.accurate:
            self._fused.head, self._store = general, None
            self.outcome = f"not used: its relative error is {store.error:.1e}"

    def using(self, key: Key) -> contextlib.AbstractContextManager[None]:
        """Serve the losses evaluated inside with the curvature of one micro-batch, if it is formed."""
        return contextlib.nullcontext() if self._store is None else self._store.using(key)

    def clear(self) -> None:
        """Drop all matrices: parameters or micro-batches changed."""
        if self._store is not None:
            self._store.clear()

    @contextlib.contextmanager
    def _serving(self, head: FusedHead | None) -> Iterator[None]:
        """Let another head serve the losses evaluated inside."""
        before, self._fused.head = self._fused.head, head
        try:
            yield
        finally:
            self._fused.head = before


def _reach(reporter: ProgressReporter, number: int, share: float) -> None:
    """Report that micro-batch ``number`` is done to a share."""
    reporter.reach(round(100 * (number + share)))
