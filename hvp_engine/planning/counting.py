"""What one micro-batch of a job computes, reads, writes and keeps, counted on tensors without data."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hvp_engine.blocks import Partition
from hvp_engine.errors import BackwardError, HvpEngineError, ObjectiveError
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.operators.head.find import head_candidates
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.operators.inspection import GraphInspection
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.planning.head_shapes import HeadOnShapes
from hvp_engine.planning.matrices import on_shapes
from hvp_engine.planning.meter import Meter, Work
from hvp_engine.planning.replay import ReplayedPasses
from hvp_engine.planning.shapes import NATIVE, Backends
from hvp_engine.problem import batches
from hvp_engine.problem.attention_switches import math_attention
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.precision import Precision, forward_mode, working_dtype
from hvp_engine.problem.randomness import UndisturbedData
from hvp_engine.problem.reading import read
from hvp_engine.problem.state_walk import StateWalk
from hvp_engine.scheduling.policy import GraphSize, transient
from hvp_engine.system.formatting import raised, text_of
from hvp_engine.system.layouts import kind_of
from hvp_engine.system.measured_graph import build_and_weigh
from hvp_engine.system.phases import phase
from hvp_engine.system.torch_private import fake_mode, without_mkldnn

Products = dict[tuple[int, int, int], int]  # FLOP by (rows, inner, columns)


@dataclass(frozen=True)
class DataShape:
    """The data of a job without its contents.

    Attributes:
        largest: The batch with the most numbers, on the meta device; None where the loss takes no data.
        samples: Its leading dimension, None where the tensors have none in common.
        batches: How many batches of the largest one's size the data amounts to.
    """

    largest: Any
    samples: int | None
    batches: float


@dataclass(frozen=True)
class CountedHead:
    """A softmax head: logits (tokens, classes) from hidden states (tokens, hidden_size).

    Attributes:
        tokens: Rows of logits of the counted samples.
        hidden_size: Width of the hidden states.
        classes: Width of the logits.
        blocks: Blocks that hold its weights.
    """

    tokens: int
    hidden_size: int
    classes: int
    blocks: frozenset[str]


@dataclass(frozen=True)
class Counts:
    """Work of one micro-batch.

    Attributes:
        samples: Samples in it.
        forward: Loss evaluation.
        gradient: First backward pass, to every parameter that a block touches.
        blocks: Second backward pass of one vector, per block.
        graph_bytes: What forward and gradient keep alive, parameters not counted.
        products: Matrix products of the forward pass.
        head: The softmax head, None where there is none.
    """

    samples: int | None
    forward: Work
    gradient: Work
    blocks: dict[str, Work]
    graph_bytes: int
    products: Products
    head: CountedHead | None

    def passes_head(self, block: str) -> bool:
        """Say whether a block's second backward pass goes through the head to the hidden states alone."""
        return self.head is not None and block not in self.head.blocks


def meta_copy(model: nn.Module, dtype: torch.dtype, device: str = "meta") -> nn.Module:
    """Return a copy without data, floating-point tensors in the working dtype, ties and requires_grad kept.

    Args:
        model: The model, with or without data.
        dtype: The working dtype.
        device: Where the copy says that it is; other than ``"meta"`` inside :func:`fake_mode` only.

    Raises:
        ObjectiveError: The model cannot be copied, or holds tensors that are sparse, nested or quantised.
    """
    # deepcopy takes a tensor's copy from the memo where there is one: nothing of the weights is read.
    state = StateWalk(model)
    kept = (*state.tensors.values(), *state.graphed.values())  # an earlier forward pass may have left some in a graph
    memo: dict[int, Any] = {id(tensor): _shell(tensor, device, tensor.dtype) for tensor in kept}
    memo.update({id(buffer): _shell(buffer, device, dtype) for buffer in model.buffers()})
    memo.update(
        {id(p): nn.Parameter(_shell(p, device, dtype), requires_grad=p.requires_grad) for p in model.parameters()}
    )
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ObjectiveError(f"The model cannot be copied, which counting needs ({raised(error)}).") from error


def _shell(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """Return a tensor without data, in the working dtype if it is a floating-point one.

    Raises:
        ObjectiveError: PyTorch has no such tensors of this kind.
    """
    kind = kind_of(tensor)
    if kind is not None:
        raise ObjectiveError(
            f"The model or the data hold a {kind} tensor; work is counted on tensors without data, and there are none "
            f"that are {kind}. Time a job with steps=1 instead: its progress shows what a step takes."
        )
    return torch.empty_like(tensor, device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)


def data_shape(data: Iterable[Any] | None, dtype: torch.dtype) -> DataShape:
    """Read shapes and sizes of all batches, once.

    Raises:
        ObjectiveError: There is no batch, or one without tensors, or no end of batches.
    """
    if data is None:
        return DataShape(None, None, 1.0)
    total = 0

    def counted() -> Iterator[Any]:
        nonlocal total
        for number, batch in enumerate(read(UndisturbedData(data))):
            batches.check_tensors(number, batch)
            total += batches.numel(batch)
            yield batch

    largest = batches.largest(counted())
    if total == 0:
        raise ObjectiveError("data is empty: it yields no batch with an element; pass at least one sample.")

    shells = batches.map_tensors(lambda tensor: _shell(tensor, "meta", dtype).contiguous(), largest)
    return DataShape(shells, batches.samples(largest), total / batches.numel(largest))


class JobCounter:
    """Counts a job's micro-batches of any size.

    The model runs on shapes alone: the fused operations report their kernels' work (:mod:`hvp_engine.planning.shapes`),
    everything else is counted as PyTorch executes it, second backward passes pruned at their block as the engine does.
    The tensors without data pass for ones on a CPU, so that autocast casts them as it casts real ones: under
    ``"bf16"`` products, activations and casts have the dtypes that they have in a job.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: DataShape,
        partition: Partition,
        precision: Precision = "fp32",
        operator: type[CurvatureOperator] = HessianOperator,
        backends: Backends = NATIVE,
    ) -> None:
        """Take the job.

        Args:
            model: Any device, the meta device too.
            loss: As for :func:`hvp_engine.slq`.
            data: The data's shape.
            partition: The blocks, resolved against ``model``.
            precision: Arithmetic of the products.
            operator: Multiplies by the matrix that is asked for.
            backends: Whose kernels the job runs on.
        """
        self._backends = backends
        self._kind = on_shapes(operator)
        self._fake = fake_mode()
        self.convolves = False
        self._loss, self._data, self._partition, self._precision = loss, data, partition, precision
        self._dtype = working_dtype(precision)
        with self._fake:
            self._model = meta_copy(model, self._dtype, "cpu")
        named = dict(self._model.named_parameters())
        self._parameters = {name: named[name] for name in partition.parameters}
        self._head = self._find_head(named)

    def count(self, samples: int | None) -> Counts:
        """Work of a micro-batch of some samples, None for the whole batch.

        Raises:
            ObjectiveError: The model or the loss needs values.
        """
        meter = Meter()
        head = None if self._head is None else HeadOnShapes(meter, [self._head[1]])
        works: dict[str, Work] = {}
        with self._shapes(meter, head), phase("counting products with every block") as now:
            graph, forward, gradient, size, products = self._graph(meter, samples)
            count = len(self._partition.blocks)
            for number, (name, block) in enumerate(self._partition.blocks.items()):
                now.reach(number / count)
                vectors = torch.empty(1, block.numel, dtype=self._dtype, device="cpu")
                with meter.part() as works[name], _in_words("second derivative is"):
                    graph.product(block, vectors, torch.empty_like(vectors), batched=False)
        tokens = None if self._head is None or head is None else head.rows[id(self._head[1])]
        return Counts(samples, forward, gradient, works, size, products, self._counted_head(tokens))

    @property
    def head(self) -> CountedHead | None:
        """The head as a few samples have it; None for a model without."""
        return self._counted_head()

    def graph_size(self, samples: int | None, *, on_cpu: bool) -> GraphSize:
        """Size of a micro-batch's graph, by its samples.

        Args:
            samples: Those of the largest batch; None where it cannot be cut.
            on_cpu: Whether the CPU's libraries will run it.
        """
        measured = GraphSize.measured(samples, self.graph_bytes)
        return replace(measured, transient=transient(self._dtype, convolves=self.convolves, on_cpu=on_cpu))

    def graph_bytes(self, samples: int | None) -> int:
        """Size of a micro-batch's graph."""
        meter = Meter()
        head = None if self._head is None else HeadOnShapes(meter, [self._head[1]])
        with self._shapes(meter, head):
            return self._graph(meter, samples)[3]

    @contextlib.contextmanager
    def _shapes(self, meter: Meter, head: HeadOnShapes | None) -> Iterator[None]:
        """Everything runs without data, and without oneDNN's own operations, which only CPUs have."""
        with (
            without_mkldnn(),
            torch.autograd.set_detect_anomaly(False),
            self._fake,
            ReplayedPasses(meter, head, self._backends),
        ):
            yield

    def _batch(self, samples: int | None) -> Any:
        """Return samples of the largest batch."""
        largest = self._data.largest if samples is None else batches.cut(self._data.largest, 0, samples)
        return batches.map_tensors(lambda tensor: torch.empty_like(tensor, device="cpu"), largest)

    def _evaluate(self, batch: Any) -> Tensor:
        with forward_mode(self._precision, torch.device("cpu")):
            return evaluate(self._model, self._loss, batch)

    @phase("counting a gradient graph")
    def _graph(self, meter: Meter, samples: int | None) -> tuple[GradientGraph, Work, Work, int, Products]:
        """Gradient graph of a micro-batch, its two passes' work, its size, and the forward's matrix products."""
        batch = self._batch(samples)

        def build() -> tuple[GradientGraph, Work, Work, Products]:
            meter.products.clear()
            kind = self._kind()
            with meter.part() as forward, kind.within:
                total = self._evaluate(batch)
            GraphInspection().unknown(samples, total, ())  # refuses what the engine refuses
            products = dict(meter.products)
            with meter.part() as gradient, _in_words("gradient is"):
                graph = kind.graph(total, self._parameters)
            return graph, forward, gradient, products

        kept: list[Tensor] = list(self._parameters.values())
        (graph, forward, gradient, products), size = build_and_weigh(
            build, lambda built: built[0].gradients.values(), kept
        )
        self.convolves |= bool(getattr(graph, "convolves", False))  # as the engine asks
        return graph, forward, gradient, size, products

    def _find_head(self, parameters: dict[str, nn.Parameter]) -> tuple[str, nn.Parameter, int] | None:
        """Find the linear head that the engine will fuse with its loss, by its rule, on shapes.

        Returns:
            Name and weights, and the rows of logits that a few samples have.
        """
        names = head_candidates(parameters)
        meter = Meter()
        search = HeadOnShapes(meter, [parameters[name] for name in names.values()])
        try:
            with self._shapes(meter, search):
                self._evaluate(self._batch(None if self._data.samples is None else min(2, self._data.samples)))
        except HvpEngineError:  # a loss that fails without it too says so when it is counted
            return None
        if len(search.rows) != 1:
            return None
        ((key, rows),) = search.rows.items()
        return names[key], parameters[names[key]], rows

    def _counted_head(self, tokens: int | None = None) -> CountedHead | None:
        """Describe the head with some rows of logits, None for those of a few samples."""
        if self._head is None:
            return None
        name, weight, few = self._head
        classes, width = weight.shape
        blocks = self._partition.blocks.items()
        holders = frozenset(block for block, b in blocks if any(part.parameter == name for part in b.parts))
        return CountedHead(few if tokens is None else tokens, width, classes, holders)


def _fix_for(error: BaseException) -> str:
    if "DeviceMismatch" in type(error).__name__ or "on the same device" in text_of(error):
        return (
            "derivatives in forward mode (torch.func.jvp, jacfwd, hessian) cannot be counted, while those in reverse "
            "mode (jacrev, grad) can, and tensors that the loss makes must be on the device of the batch"
        )
    return (
        "the model and the loss must not read values (.item(), float(), branches on data), and tensors of their own "
        "must be parameters or buffers of the model, or be made on the device of the batch"
    )


@contextlib.contextmanager
def _in_words(what: str) -> Iterator[None]:
    """Say of an exception that it came while something was counted, and what may be the cause."""
    try:
        yield
    except Exception as failure:
        if isinstance(failure, HvpEngineError) and not isinstance(failure, BackwardError):
            raise
        error = failure.__cause__ if isinstance(failure, BackwardError) and failure.__cause__ else failure
        raise ObjectiveError(
            f"The {what} counted on tensors without data, where an exception was raised "
            f"({raised(error)}). If the job runs with data: {_fix_for(error)}. Where that cannot be, time a job with "
            "steps=1: its progress shows what a step takes."
        ) from failure


def evaluate(model: nn.Module, loss: Loss, batch: Any) -> Tensor:
    """Total of a batch without data.

    Raises:
        ObjectiveError: The model or the loss needs values, or the loss is no scalar.
    """
    with _in_words("model and the loss are"), torch.enable_grad(), math_attention():
        value = loss(model) if batch is None else loss(model, batch)
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    total = value[0] if pair else value
    if not isinstance(total, Tensor) or total.numel() != 1 or not total.requires_grad:
        raise ObjectiveError(
            "The loss must return a scalar tensor, or (total, weight), that depends on the model's parameters."
        )
    return total.reshape(())
