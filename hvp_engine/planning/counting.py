"""What one micro-batch of a job computes, reads, writes and keeps, counted on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hvp_engine import batches, memory
from hvp_engine.blocks import Partition
from hvp_engine.errors import HvpEngineError, ObjectiveError
from hvp_engine.objective import Loss
from hvp_engine.operators.gradient_graph import GradientGraph
from hvp_engine.planning.meter import Meter, Work
from hvp_engine.planning.shapes import ShapesOnly

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
class HeadShape:
    """A softmax head: logits (tokens, classes) from hidden states (tokens, hidden_size).

    Attributes:
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
    head: HeadShape | None

    def passes_head(self, block: str) -> bool:
        """Whether a block's second backward pass goes through the head to the hidden states alone."""
        return self.head is not None and block not in self.head.blocks


def meta_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy without data, floating-point tensors in the working dtype, ties and requires_grad kept.

    Raises:
        ObjectiveError: The model cannot be copied.
    """

    def shell(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device="meta", dtype=dtype if tensor.is_floating_point() else tensor.dtype)

    # deepcopy takes a tensor's copy from the memo where there is one: nothing of the weights is read.
    memo: dict[int, Any] = {id(buffer): shell(buffer) for buffer in model.buffers()}
    memo.update({id(p): nn.Parameter(shell(p), requires_grad=p.requires_grad) for p in model.parameters()})
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ObjectiveError(f"The model cannot be copied, which counting needs: {error}.") from error


def data_shape(data: Iterable[Any] | None, dtype: torch.dtype) -> DataShape:
    """Reads shapes and sizes of all batches, once.

    Raises:
        ObjectiveError: There is no batch.
    """
    if data is None:
        return DataShape(None, None, 1.0)
    largest, most, total = None, 0, 0
    for batch in data:
        size = sum(tensor.numel() for tensor in batches.tensors(batch))
        total += size
        if size > most:
            largest, most = batch, size
    if most == 0:
        raise ObjectiveError("data is empty: it yields no batch with tensors.")

    def shell(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, device="meta", dtype=dtype if tensor.is_floating_point() else tensor.dtype)

    return DataShape(batches.map_tensors(shell, largest), batches.samples(largest), total / most)


class JobCounter:
    """Counts a job's micro-batches of any size.

    The model runs on shapes alone: the fused operations report their kernels' work (:mod:`hvp_engine.planning.shapes`),
    everything else is counted as PyTorch executes it, second backward passes pruned at their block as the engine does.
    """

    def __init__(self, model: nn.Module, loss: Loss, data: DataShape, partition: Partition) -> None:
        """Take the job.

        Args:
            model: On the meta device.
            loss: As for :func:`hvp_engine.slq`.
            data: The data's shape.
            partition: The blocks, resolved against ``model``.
        """
        self._model, self._loss, self._data, self._partition = model, loss, data, partition
        named = dict(model.named_parameters())
        self._parameters = {name: named[name] for name in partition.parameters}
        self._dtype = next(iter(self._parameters.values())).dtype

    def count(self, samples: int | None) -> Counts:
        """Work of a micro-batch of some samples, None for the whole batch.

        Raises:
            ObjectiveError: The model or the loss needs values.
        """
        meter = Meter()
        shapes = ShapesOnly(meter)
        works: dict[str, Work] = {}
        with shapes:
            graph, forward, gradient, size, products = self._graph(meter, samples)
            for name, block in self._partition.blocks.items():
                vectors = torch.empty(1, block.numel, device="meta", dtype=self._dtype)
                with meter.part() as works[name]:
                    graph.product(block, vectors, torch.empty_like(vectors), batched=False)
        head = _head(shapes.classes, products, self._partition, self._parameters)
        return Counts(samples, forward, gradient, works, size, products, head)

    def graph_bytes(self, samples: int | None) -> int:
        """Size of a micro-batch's graph."""
        meter = Meter()
        with ShapesOnly(meter):
            return self._graph(meter, samples)[3]

    def _graph(self, meter: Meter, samples: int | None) -> tuple[GradientGraph, Work, Work, int, Products]:
        """Gradient graph of a micro-batch, its two passes' work, its size, and the forward's matrix products."""
        batch = self._data.largest if samples is None else batches.cut(self._data.largest, 0, samples)
        with memory.graph_size(list(self._parameters.values())) as size:
            with meter.part() as forward:
                total = evaluate(self._model, self._loss, batch)
            products = dict(meter.products)
            with meter.part() as gradient:
                graph = GradientGraph(total, 1.0, self._parameters)
        return graph, forward, gradient, size.bytes, products


def evaluate(model: nn.Module, loss: Loss, batch: Any) -> Tensor:
    """Total of a batch without data.

    Raises:
        ObjectiveError: The model or the loss needs values, or the loss is no scalar.
    """
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            value = loss(model) if batch is None else loss(model, batch)
    except HvpEngineError:
        raise
    except Exception as error:
        raise ObjectiveError(
            f"The model and the loss are counted on tensors without data, where they raised {type(error).__name__}: "
            f"{str(error).rstrip('.')}. They must not read values (.item(), float(), branches on data), and tensors of "
            "their own must be parameters or buffers of the model, or be made on the device of the batch."
        ) from error
    total = value[0] if isinstance(value, (tuple, list)) else value
    if not isinstance(total, Tensor) or total.numel() != 1 or not total.requires_grad:
        raise ObjectiveError(
            "The loss must return a scalar tensor, or (total, weight), that depends on the model's parameters."
        )
    return total.reshape(())


def _head(
    classes: tuple[int, int] | None, products: Products, partition: Partition, parameters: dict[str, nn.Parameter]
) -> HeadShape | None:
    """The head, recognised as the forward's largest product with as many columns as the loss has classes."""
    if classes is None:
        return None
    candidates = [shape for shape in products if shape[0] >= classes[0] and shape[2] == classes[1]]
    if not candidates:
        return None
    rows, inner, columns = max(candidates, key=lambda shape: shape[0] * shape[1])
    weights = {name for name, parameter in parameters.items() if tuple(parameter.shape) == (columns, inner)}
    holders = {name for name, b in partition.blocks.items() if any(part.parameter in weights for part in b.parts)}
    return HeadShape(rows, inner, columns, frozenset(holders))
