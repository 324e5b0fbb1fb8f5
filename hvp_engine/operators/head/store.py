"""The curvature of a model's linear head: formed once per micro-batch, applied to every stream at every step.

With hidden states h_n and head weights W, the second derivative of token n's cross-entropy with respect to h_n is the
d x d matrix M_n = W'(diag(p_n) - p_n p_n')W. Every stream whose block does not contain W passes through the head with
that matrix alone: 2 d^2 FLOP per token and product instead of 4 V d. Forming it costs V d (d + 1) FLOP per token, so
that jobs of many products win, and single products do not.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hvp_engine.kernels.packed_symmetric import packed_size
from hvp_engine.operators.head.shelf import Formed, Piece, Shelf
from hvp_engine.ops.head.curvature import HeadCurvature, form_head_curvature
from hvp_engine.ops.head.lazy_logits import FusedHead, HeadLogits
from hvp_engine.scheduling.policy import CurvaturePlan
from hvp_engine.system.pages import map_temporary_file

Key = tuple[int, int]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2}
_CHECKED_ROWS = 64


class CurvatureStore(FusedHead):
    """The matrices of every micro-batch, formed when a micro-batch is first seen.

    Attributes:
        plan: Where they are.
        error: Largest relative error of a product with them so far, against the general path in float64.
        bound: Largest share of the largest trace that a matrix lost by dropping classes, see `form_head_curvature`.
        report: Called with the share of a micro-batch's matrices that is formed.
        full: Why there is no room for more matrices; None while there is.
    """

    def __init__(self, weight: Tensor, plan: CurvaturePlan, tolerance: float = 0.0, shelf: Shelf | None = None) -> None:
        """Make an empty store.

        Args:
            weight: The head's weights.
            plan: Where the matrices go.
            tolerance: What dropping classes may change, see `form_head_curvature`.
            shelf: Keeps them for a resumed job, and has those of an earlier run; None keeps none.
        """
        super().__init__(weight, keep_logits=False)
        self.plan = plan
        self.shelf = shelf
        self.error = 0.0
        self.bound = 0.0
        self._tolerance = tolerance
        self._excess = 0.0  # largest error beyond what dropping explains
        self._tokens = 0
        self._kept = 0.0  # share kept, summed over the tokens
        self.report: Callable[[float], None] | None = None
        self.full: str | None = None
        self._formed: dict[Key, list[HeadCurvature | None]] = {}
        self._key: Key | None = None
        self._calls = 0

    @contextlib.contextmanager
    def using(self, key: Key) -> Iterator[None]:
        """Serve the losses evaluated inside with the matrices of one micro-batch."""
        self._key, self._calls = key, 0
        try:
            yield
        finally:
            self._key = None

    def clear(self) -> None:
        """Drop all matrices: parameters or micro-batches changed."""
        self._formed.clear()
        if self.shelf is not None:
            self.shelf.clear()

    def curvature(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> HeadCurvature | None:
        """Return the matrices of this call of the loss; None outside of `using`, or where there was no room for any."""
        if self._key is None:
            return None
        formed = self._formed.setdefault(self._key, [])
        number, self._calls = self._calls, self._calls + 1
        known = formed[number] if number < len(formed) else None
        if known is not None and known.packed.shape[0] != hidden.shape[0]:
            del formed[number:]  # the micro-batch became smaller: memory ran out
        if number == len(formed):
            formed.append(self._take((*self._key, number), hidden, weight, bias))
        return formed[number]

    def loss(self, logits: HeadLogits, target: Tensor, **options: Any) -> Tensor:
        """Do what `FusedHead.loss` does; ignored tokens, which add nothing to a sum or mean, get no matrices."""
        counted = target != options["ignore_index"]
        if self._key is not None and options["reduction"] != "none" and 0 < int(counted.sum()) < target.numel():
            rows = counted.nonzero().squeeze(1)
            logits, target = logits.on_rows(logits.hidden.index_select(0, rows)), target[rows]
        return super().loss(logits, target, **options)

    @property
    def accurate(self) -> bool:
        """Whether the measured error is as small as the storage type and the bound on what was dropped promise."""
        return self._excess <= _TOLERANCE[self.plan.dtype]

    @property
    def kept(self) -> float:
        """Share of the classes that were kept, averaged over the tokens."""
        return self._kept / self._tokens if self._tokens else 1.0

    def __str__(self) -> str:
        """Return words for logs and manifests."""
        words = f"{self.plan}, relative error {self.error:.1e}"
        if self.full is not None:
            words = f"{words}, of a part of the data ({self.full})"
        if self._tolerance == 0:
            return words
        return f"{words}, {100 * self.kept:.3g}% of the classes kept, up to {self.bound:.1e} of the largest trace lost"

    def _take(self, piece: Piece, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> HeadCurvature | None:
        """Find the matrices of hidden states (N, d), or form them; None where there is no room."""
        mapped = self.plan.place == "disk"
        formed = None if self.shelf is None else self.shelf.find(piece, len(hidden), self.plan.dtype, mapped=mapped)
        if formed is not None:
            formed = self._moved(formed, hidden)
        elif self.full is None:
            formed = self._form(piece, hidden, weight, bias)
        if formed is None:
            return None
        matrices, tokens = formed.curvature, hidden.shape[0]
        self.error = max(self.error, formed.error)
        self._excess = max(self._excess, formed.error - formed.explained)
        self._tokens += tokens
        self._kept += tokens * (1.0 if matrices.dropped is None else matrices.dropped.kept)
        self.bound = max(self.bound, 0.0 if matrices.dropped is None else matrices.dropped.relative)
        return matrices

    def _form(self, piece: Piece, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Formed | None:
        """Form the matrices of hidden states (N, d), and measure them; None where the disk has no room for them."""
        started = time.monotonic()
        try:
            room = self._pages(piece, hidden)
        except OSError as error:
            self.full = f"no room on the disk: {error.strerror or error}"
            fix = "set TMPDIR to a folder with more" if self.shelf is None else "choose a folder with more for out="
            warnings.warn(
                f"The head's curvature does not fit on the disk ({error}). The job goes on without it for the rest of "
                f"the data, which takes longer; free some space, or {fix}.",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        matrices = form_head_curvature(
            hidden,
            weight,
            bias=bias,
            dtype=self.plan.dtype,
            out=room,
            report=self.report,
            tolerance=self._tolerance,
        )
        formed = Formed(matrices, *_error(matrices, hidden, weight, bias))
        if self.shelf is not None:
            self.shelf.add(piece, formed, time.monotonic() - started)
        return formed

    @staticmethod
    def _moved(formed: Formed, hidden: Tensor) -> Formed:
        """Return matrices from the shelf where and as sweeps expect them."""
        curvature = formed.curvature
        dropped = curvature.dropped
        if dropped is not None:
            dropped = replace(dropped, bound=dropped.bound.to(hidden.device))
        moved = replace(
            curvature,
            packed=curvature.packed.to(hidden.device),
            lse=curvature.lse.to(hidden.device),
            dropped=dropped,
        )
        return replace(formed, curvature=moved)

    def _pages(self, piece: Piece, hidden: Tensor) -> Tensor | None:
        """Return a file's pages for the packed matrices of hidden states (N, d), or None for memory.

        Raises:
            OSError: There is no room for the file.
        """
        if self.plan.place != "disk":
            return None
        size = hidden.shape[0] * packed_size(hidden.shape[1])
        if self.shelf is None:
            pages = map_temporary_file(size, self.plan.dtype)
        else:
            pages = self.shelf.pages(piece, size, self.plan.dtype)
        return pages.view(hidden.shape[0], -1)


@torch.no_grad()
def _error(matrices: HeadCurvature, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[float, float]:
    """Measure products with a few tokens' matrices against the general path in float64.

    Returns:
        The relative error, and as much of it as dropped classes can explain.
    """
    rows = slice(0, _CHECKED_ROWS)
    wide, head = hidden[rows].double(), weight.double()
    # The tangent that the first token's state gives: any fixed direction serves.
    u = wide.roll(1, dims=-1) - wide.mean(-1, keepdim=True)
    p = torch.nn.functional.linear(wide, head, None if bias is None else bias.double()).softmax(-1)
    t = u @ head.T
    exact = (p * (t - (p * t).sum(-1, keepdim=True))) @ head
    few = replace(matrices, packed=matrices.packed[rows], lse=matrices.lse[rows])
    found = few.apply(u.to(matrices.lse.dtype)).double()  # the matrices' error alone, without that of low precision
    scale = float(exact.norm())
    if scale == 0:
        return 0.0, 0.0
    lost = 0.0 if matrices.dropped is None else float((matrices.dropped.bound[rows] * u.norm(dim=-1)).norm())
    return float((found - exact).norm()) / scale, lost / scale
