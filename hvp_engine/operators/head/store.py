"""The linear head of a model, and its curvature: formed once per micro-batch, applied to every stream at every step.

With hidden states h_n and head weights W, the second derivative of token n's cross-entropy with respect to h_n is the
d x d matrix M_n = W'(diag(p_n) - p_n p_n')W. Every stream whose block does not contain W passes through the head with
that matrix alone: 2 d^2 FLOP per token and product instead of 4 V d. Forming it costs V d (d + 1) FLOP per token, so
that jobs of many products win, and single products do not.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hvp_engine.errors import HvpEngineError
from hvp_engine.kernels.packed_symmetric import packed_size
from hvp_engine.ops.head.curvature import HeadCurvature, form_head_curvature, head_cost
from hvp_engine.ops.head.lazy_logits import FusedHead, HeadLogits
from hvp_engine.problem import batches

if TYPE_CHECKING:
    from hvp_engine.problem.objective import Objective
    from hvp_engine.problem.precision import Precision

log = logging.getLogger(__name__)

Key = tuple[int, int]

# Storage of the matrices by the precision of the products.
CURVATURE_DTYPES: dict[Precision, torch.dtype] = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.bfloat16,
    "bf16": torch.bfloat16,
}
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2}
_MEMORY_SHARE = 0.25  # of the budget, for matrices in memory; more goes to disk
_DISK_SHARE = 0.5  # of what is free on the temporary folder's disk
# FLOP that the machine does while it moves one byte of matrices from there.
_BALANCE = {"memory": 16.0, "disk": 128.0, "device memory": 100.0}
_CHECKED_ROWS = 64


@dataclass(frozen=True)
class Head:
    """A linear layer with more classes than inputs whose output goes into cross-entropy and nowhere else.

    Attributes:
        name: Parameter name of its weights.
        weight: The weights (V, d).
        rows: Rows of logits that a few samples have (`batches.few_samples`).
    """

    name: str
    weight: Tensor
    rows: int


class _Search(FusedHead):
    """Records which weights' logits reach a cross-entropy uncomputed."""

    def __init__(self, parameters: set[int]) -> None:
        self._parameters = parameters
        self.found: list[tuple[Tensor, int]] = []
        self.keep_logits = False

    def matches(self, weight: Tensor) -> bool:
        return id(weight) in self._parameters

    def loss(self, logits: HeadLogits, target: Tensor, **options: Any) -> Tensor:
        self.found.append((logits.weight, logits.hidden.shape[0]))
        return super().loss(logits, target, **options)


def fuse_head(objective: Objective, batch: Any) -> Head | None:
    """Finds the head, if there is one, and lets its loss be computed without the graph of the logits."""
    head = _find_head(objective, batch)
    if head is not None:
        objective.fused.head = FusedHead(head.weight, keep_logits=True)
    return head


def head_candidates(parameters: Mapping[str, Tensor]) -> dict[int, str]:
    """Names by the ids of matrices with more outputs than inputs: only there does a head's curvature gain."""
    return {id(p): name for name, p in parameters.items() if p.dim() == 2 and p.shape[0] > p.shape[1]}


def _find_head(objective: Objective, batch: Any) -> Head | None:
    """Runs the loss on a few samples with every wide linear layer's output left uncomputed; sees which one is a head.

    Returns:
        The head, or None: no such layer, several, or a loss that differs from the one with logits.
    """
    names = head_candidates(objective.parameters)
    search = _Search(set(names))
    before = objective.fused.head
    try:
        objective.fused.head = None
        plain = objective.spot_value(batch)
        objective.fused.head = search
        lazy = objective.spot_value(batch)
    except (HvpEngineError, RuntimeError) as error:  # a loss that fails without it too says so when it runs next
        log.info("no head fused: %s", error)
        return None
    finally:
        objective.fused.head = before
    weights = {id(weight) for weight, _ in search.found}
    tolerance = 1e-2 if objective.precision == "bf16" else 1e-4
    if len(weights) != 1 or abs(plain - lazy) > tolerance * max(abs(plain), abs(lazy)):
        return None
    weight = search.found[0][0]
    return Head(names[id(weight)], weight, sum(rows for _, rows in search.found))


@dataclass(frozen=True)
class CurvaturePlan:
    """Where the matrices go.

    Attributes:
        dtype: Storage type.
        bytes: Size of all of them.
        place: "memory", "disk" or "device memory".
    """

    dtype: torch.dtype
    bytes: int
    place: str

    @property
    def memory_bytes(self) -> int:
        """What of it takes memory of the device that computes."""
        return 0 if self.place == "disk" else self.bytes

    def __str__(self) -> str:
        """Words for logs and manifests."""
        where = "on disk" if self.place == "disk" else f"in {self.place}"
        return f"{str(self.dtype).removeprefix('torch.')}, {self.bytes / 2**20:.0f} MiB {where}"


def plan_curvature(head: Head, objective: Objective, products: int, budget: int) -> CurvaturePlan | None:
    """Decides from sizes whether forming the matrices pays, and where they go.

    Args:
        head: The head.
        objective: Gives data, precision and device.
        products: Products per micro-batch that would use the matrices.
        budget: Bytes of memory for the whole job.

    Returns:
        None where the general path costs less, or the matrices fit nowhere.
    """
    tokens = 0
    for _, batch in objective.batches():
        size = batches.samples(batch)
        tokens += head.rows if size is None else head.rows * size // min(size, 2)
    classes, width = head.weight.shape
    return choose_curvature(
        (tokens, width, classes), objective.precision, products, budget, on_cpu=objective.device.type == "cpu"
    )


def choose_curvature(
    sizes: tuple[int, int, int], precision: Precision, products: int, budget: int, *, on_cpu: bool
) -> CurvaturePlan | None:
    """The decision of `plan_curvature` from plain sizes.

    Args:
        sizes: Tokens of all the data, hidden size, classes.
        precision: Arithmetic of the products.
        products: Products over all the data that would use the matrices.
        budget: Bytes of memory for the whole job.
        on_cpu: Whether matrices that are too large for memory may go to disk; a GPU keeps them or has none.
    """
    tokens, width, classes = sizes
    dtype = CURVATURE_DTYPES[precision]
    cost = head_cost(tokens, width, classes, dtype, kept_logits=True)
    if cost.stored_bytes <= _MEMORY_SHARE * budget:
        place = "memory" if on_cpu else "device memory"
    elif on_cpu and cost.stored_bytes <= _DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free:
        place = "disk"
    else:
        return None
    apply = max(cost.apply_flop, _BALANCE[place] * cost.apply_bytes)
    if products * (cost.general_flop - apply) <= cost.form_flop:
        return None
    return CurvaturePlan(dtype, cost.stored_bytes, place)


class CurvatureStore(FusedHead):
    """The matrices of every micro-batch, formed when a micro-batch is first seen.

    Attributes:
        plan: Where they are.
        error: Largest relative error of a product with them so far, against the general path in float64.
        bound: Largest share of the largest trace that a matrix lost by dropping classes, see `form_head_curvature`.
        report: Called with the share of a micro-batch's matrices that is formed.
    """

    def __init__(self, weight: Tensor, plan: CurvaturePlan, tolerance: float = 0.0) -> None:
        """Make an empty store.

        Args:
            weight: The head's weights.
            plan: Where the matrices go.
            tolerance: What dropping classes may change, see `form_head_curvature`.
        """
        super().__init__(weight, keep_logits=False)
        self.plan = plan
        self.error = 0.0
        self.bound = 0.0
        self._tolerance = tolerance
        self._excess = 0.0  # largest error beyond what dropping explains
        self._tokens = 0
        self._kept = 0.0  # share kept, summed over the tokens
        self.report: Callable[[float], None] | None = None
        self._formed: dict[Key, list[HeadCurvature]] = {}
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

    def curvature(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> HeadCurvature | None:
        """The matrices of this call of the loss; None outside of `using`."""
        if self._key is None:
            return None
        formed = self._formed.setdefault(self._key, [])
        number, self._calls = self._calls, self._calls + 1
        if number < len(formed) and formed[number].packed.shape[0] != hidden.shape[0]:
            del formed[number:]  # the micro-batch became smaller: memory ran out
        if number == len(formed):
            formed.append(self._form(hidden, weight, bias))
        return formed[number]

    def loss(self, logits: HeadLogits, target: Tensor, **options: Any) -> Tensor:
        """As `FusedHead.loss`; ignored tokens, which add nothing to a sum or mean, get no matrices."""
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
        """Words for logs and manifests."""
        words = f"{self.plan}, relative error {self.error:.1e}"
        if self._tolerance == 0:
            return words
        return f"{words}, {100 * self.kept:.3g}% of the classes kept, up to {self.bound:.1e} of the largest trace lost"

    def _form(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> HeadCurvature:
        """Forms the matrices of hidden states (N, d), and measures them."""
        matrices = form_head_curvature(
            hidden,
            weight,
            bias=bias,
            dtype=self.plan.dtype,
            out=self._room(hidden),
            report=self.report,
            tolerance=self._tolerance,
        )
        error, explained = _error(matrices, hidden, weight, bias)
        self.error, self._excess = max(self.error, error), max(self._excess, error - explained)
        tokens, dropped = hidden.shape[0], matrices.dropped
        self._tokens += tokens
        self._kept += tokens * (1.0 if dropped is None else dropped.kept)
        self.bound = max(self.bound, 0.0 if dropped is None else dropped.relative)
        return matrices

    def _room(self, hidden: Tensor) -> Tensor | None:
        """A file's pages for the packed matrices of hidden states (N, d), or None for memory."""
        if self.plan.place != "disk":
            return None
        size = hidden.shape[0] * packed_size(hidden.shape[1])
        with tempfile.NamedTemporaryFile(prefix="hvp_engine_head_") as file:
            # The mapping keeps the file's pages alive; its name goes now, so that no crash leaves it behind.
            return torch.from_file(file.name, shared=True, size=size, dtype=self.plan.dtype).view(hidden.shape[0], -1)


@torch.no_grad()
def _error(matrices: HeadCurvature, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[float, float]:
    """Relative error of products with a few tokens' matrices, against the general path in float64.

    Returns:
        The error, and as much of it as dropped classes can explain.
    """
    rows = slice(0, _CHECKED_ROWS)
    wide, head = hidden[rows].double(), weight.double()
    # The tangent that the first token's state gives: any fixed direction serves.
    u = wide.roll(1, dims=-1) - wide.mean(-1, keepdim=True)
    p = torch.nn.functional.linear(wide, head, None if bias is None else bias.double()).softmax(-1)
    t = u @ head.T
    exact = (p * (t - (p * t).sum(-1, keepdim=True))) @ head
    few = replace(matrices, packed=matrices.packed[rows], lse=matrices.lse[rows])
    found = few.apply(u.to(hidden.dtype)).double()
    scale = float(exact.norm())
    if scale == 0:
        return 0.0, 0.0
    lost = 0.0 if matrices.dropped is None else float((matrices.dropped.bound[rows] * u.norm(dim=-1)).norm())
    return float((found - exact).norm()) / scale, lost / scale
