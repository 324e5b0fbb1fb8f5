"""The fused operations without their arithmetic: what each pass reads, writes and keeps, for tensors that have no data.

The fused kernels cannot run on meta tensors, and the plain operations that could are a poor stand-in: they write the
attention matrix and chains of temporaries that the kernels never form, and never recompute what the kernels do. So a
counted model runs on functions that only make results of the right shape and report the kernels' work: every operand
of a pass is read once and every result written once; attention adds its tile products. Where a device has no kernels
the plain operations are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from hvp_engine.kernels.attention import counts_of
from hvp_engine.kernels.records import AttentionSizes, AttentionWork
from hvp_engine.kernels.tensors import accumulator
from hvp_engine.ops.applies import autocast_operands
from hvp_engine.ops.autograd import tensor_arguments, wanted_gradients
from hvp_engine.ops.grouped_mm import grouped_mm_ref
from hvp_engine.ops.head.lazy_logits import FusedHead, HeadLogits
from hvp_engine.ops.swap import REPLACEMENTS, TwiceDifferentiable
from hvp_engine.planning.meter import Family, Meter, Operation, traffic
from hvp_engine.system.torch_private import inside_transform


class Backends(NamedTuple):
    """Whose kernels are counted.

    Attributes:
        attention: Of attention; None counts plain operations.
        others: Whether there are kernels of the other operations.
    """

    attention: str | None
    others: bool


NATIVE = Backends("native", others=True)


class Pass(NamedTuple):
    """Arithmetic of one pass of an operation.

    Attributes:
        flop: Of matrix products.
        family: What kind of work it is.
        launches: How many kernels it starts.
    """

    flop: float
    family: Family
    launches: int = 1


class Kernel:
    """Shapes and work of one fused operation.

    Attributes:
        family: What kind of work its passes are.
        meter: Where its passes are counted.
        operands: How many of its leading tensors may be differentiated.
    """

    family: Family = "activation"

    def __init__(self, meter: Meter, operands: int) -> None:
        self.meter, self.operands = meter, operands

    def outcome(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Allocate the result; by default in the shape of the first tensor."""
        assert tensors[0] is not None
        return torch.empty_like(tensors[0], memory_format=torch.contiguous_format)

    def kept(self, tensors: Sequence[Tensor | None], out: Tensor) -> tuple[Tensor, ...]:
        """Allocate what the forward pass keeps for the others besides its inputs; by default nothing."""
        return ()

    def forward(self, tensors: Sequence[Tensor | None]) -> Pass:
        """Describe the forward pass."""
        return Pass(0.0, self.family)

    def backward(self, tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> Pass:
        """Describe the backward pass to the wanted operands."""
        return Pass(0.0, self.family)

    def second(self, tensors: Sequence[Tensor | None], given: Sequence[bool], wanted: Sequence[bool]) -> Pass:
        """Describe the backward's backward, from given tangents to wanted operands and (last) cotangent."""
        return Pass(0.0, self.family)

    def count(self, done: Pass, tensors: Iterable[Tensor | None]) -> None:
        """Report one pass."""
        self.meter.work.add(Operation(done.flop, traffic(tensors), done.family, done.launches))


class RowKernel(Kernel):
    """An operation that keeps two numbers per row: mean and deviation, or largest score and sum of exponentials."""

    family: Family = "norm"

    def kept(self, tensors: Sequence[Tensor | None], out: Tensor) -> tuple[Tensor, ...]:
        """Return the two numbers, in the kernels' accumulator type."""
        assert tensors[0] is not None
        return (tensors[0].new_empty((*tensors[0].shape[:-1], 2), dtype=accumulator(tensors[0].dtype)),)


class SoftmaxKernel(Kernel):
    """Softmax: its derivatives read the probabilities."""

    family: Family = "loss"

    def kept(self, tensors: Sequence[Tensor | None], out: Tensor) -> tuple[Tensor, ...]:
        """Return the result."""
        return (out,)


class AttentionKernel(RowKernel):
    """Attention by tiles: the products that a backend's kernels form, above the diagonal none if causal."""

    def __init__(self, meter: Meter, causal: bool, backend: str) -> None:
        super().__init__(meter, 3)
        self.causal, self._counts = causal, counts_of(backend)

    def outcome(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """One row of values per query."""
        query, _, value = tensors[:3]
        assert query is not None and value is not None
        return query.new_empty((*query.shape[:-1], value.shape[-1]))

    def forward(self, tensors: Sequence[Tensor | None]) -> Pass:
        """Describe the forward pass."""
        return self._pass("attention forward", self._counts.forward(_sizes(tensors)), tensors)

    def backward(self, tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> Pass:
        """Describe the backward pass."""
        return self._pass("attention backward", self._counts.backward(wanted, _sizes(tensors)), tensors)

    def second(self, tensors: Sequence[Tensor | None], given: Sequence[bool], wanted: Sequence[bool]) -> Pass:
        """Describe the backward of the backward."""
        return self._pass("attention second", self._counts.second(given, wanted, _sizes(tensors)), tensors)

    def _pass(self, family: Family, work: AttentionWork, tensors: Sequence[Tensor | None]) -> Pass:
        sizes = _sizes(tensors)
        rows = sizes.queries
        seen = min(1.0, 0.5 * (1.0 + min(work.edge, rows) / rows)) if self.causal else 1.0
        pairs = float(sizes.batch * sizes.heads * rows * sizes.keys)
        columns = work.narrow * sizes.width + work.wide * sizes.value_width
        return Pass(2.0 * pairs * columns * seen, family, work.launches)


def _sizes(tensors: Sequence[Tensor | None]) -> AttentionSizes:
    query, _, value, mask = tensors[:4]
    assert query is not None and value is not None
    heads, key_heads = (t.shape[-3] if t.dim() > 2 else 1 for t in (query, value))
    (queries, width), (keys, value_width) = query.shape[-2:], value.shape[-2:]
    batch = query.shape[:-3].numel()
    return AttentionSizes(
        query.dtype, batch, heads, key_heads, queries, keys, width, value_width, masked=mask is not None
    )


class LossKernel(RowKernel):
    """Cross-entropy of rows: one loss and two numbers each, never probabilities."""

    family: Family = "loss"

    def outcome(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """One loss per row."""
        assert tensors[0] is not None
        return tensors[0].new_empty(tensors[0].shape[0], dtype=accumulator(tensors[0].dtype))


class _Forward(Function):
    @staticmethod
    def forward(ctx: Any, kernel: Kernel, *tensors: Tensor | None) -> Tensor:
        out = kernel.outcome(tensors)
        kept = kernel.kept(tensors, out)
        kernel.count(kernel.forward(tensors), (*tensors, out, *(t for t in kept if t is not out)))
        ctx.kernel = kernel
        ctx.is_tensor = tensor_arguments((kernel, *tensors))
        ctx.save_for_backward(*tensors, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs = len(ctx.is_tensor) - 1
        wanted = tuple(wanted_gradients(ctx, ctx.is_tensor)[1 : 1 + ctx.kernel.operands])
        if not any(wanted):
            return (None,) * (1 + inputs)
        saved = (*ctx.saved_tensors[:inputs], *(t.detach() for t in ctx.saved_tensors[inputs:]))
        parts = iter(_Backward.apply(ctx.kernel, wanted, grads[0], *saved))  # type: ignore[no-untyped-call]
        found = [next(parts) if want else None for want in wanted]
        return (None, *found, *(None,) * (inputs - len(found)))


class _Backward(Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: Kernel, wanted: tuple[bool, ...], grad: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        parts = _like(tensors, wanted)
        kernel.count(kernel.backward(tensors, wanted), (grad, *tensors, *parts))
        ctx.kernel, ctx.wanted = kernel, wanted
        ctx.is_tensor = tensor_arguments((kernel, wanted, grad, *tensors))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, *tensors)
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, *tensors = ctx.saved_tensors
        needed = wanted_gradients(ctx, ctx.is_tensor)[2:]
        of_grad, of_inputs = needed[0], needed[1 : 1 + ctx.kernel.operands]
        places = iter(tangents)
        given = tuple(next(places) is not None if want else False for want in ctx.wanted)
        wanted = (*of_inputs, of_grad)
        if not any(wanted):
            return (None,) * (3 + len(tensors))
        arguments = (ctx.kernel, len(tensors), given, wanted, grad, *tangents, *tensors)
        parts = _Second.apply(*arguments)  # type: ignore[no-untyped-call]
        rest = iter(parts)
        found = [next(rest) if want else None for want in of_inputs]
        return (None, None, next(rest, None), *found, *(None,) * (len(tensors) - len(found)))


class _Second(Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        inputs: int,
        given: tuple[bool, ...],
        wanted: tuple[bool, ...],
        grad: Tensor,
        *rest: Tensor | None,
    ) -> tuple[Tensor, ...]:
        tensors = rest[len(rest) - inputs :]
        parts = _like((*tensors[: len(wanted) - 1], grad), wanted)
        kernel.count(kernel.second(tensors, given, wanted), (*rest, grad, *parts))
        ctx.kernel = kernel
        ctx.save_for_backward(grad, *rest)
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        # A third derivative runs as plain PyTorch: this counts its operands, not the temporaries in between.
        parts = [None if t is None or not t.is_floating_point() else torch.empty_like(t) for t in ctx.saved_tensors]
        ctx.kernel.count(Pass(0.0, "elementwise"), (*cotangents, *ctx.saved_tensors, *parts))
        return (None, None, None, None, *parts)


def _like(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor]:
    """Return results in the shapes of the wanted tensors."""
    return [torch.empty_like(t) for t, want in zip(tensors, wanted, strict=False) if want and t is not None]


def kernel_of(node: Any) -> Kernel | None:
    """Return the kernel of a fused operation's forward node; None for any other node."""
    return node.kernel if getattr(type(node), "_forward_cls", None) is _Forward else None


def kernel_of_any(node: Any) -> Kernel | None:
    """Return the kernel of a node of any of a fused operation's passes; None for other nodes."""
    return node.kernel if getattr(type(node), "_forward_cls", None) in (_Forward, _Backward, _Second) else None


def run_shapes(kernel: Kernel, *tensors: Tensor | None) -> Tensor:
    """Return the result of a fused operation, attached to the graph, without values."""
    out: Tensor = _Forward.apply(kernel, *tensors)  # type: ignore[no-untyped-call]
    return out


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Reduce losses of rows as a loss function's ``reduction`` asks for them."""
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


class ShapesOnly(TwiceDifferentiable):
    """Runs a model on fused operations that have shapes and costs, but no values."""

    def __init__(self, meter: Meter, head: FusedHead | None = None, backends: Backends = NATIVE) -> None:
        super().__init__(head)
        self._meter, self._backends = meter, backends

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one intercepted call; calls without a kernel run as they are."""
        # Transforms of torch.func know no rules for these stand-ins; inside them PyTorch's own operations are counted.
        name, replacement = ("", None) if inside_transform() else REPLACEMENTS.get(func, ("", None))
        is_lazy = any(issubclass(kind, HeadLogits) for kind in types)
        has_kernels = self._backends.others or name == "attention"
        shaped = getattr(self, f"_{name}", None) if replacement is not None and has_kernels and not is_lazy else None
        result = NotImplemented if shaped is None else shaped(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs) if result is NotImplemented else result

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> Any:
        backend = self._backends.attention
        if backend is None or dropout_p or (attn_mask is not None and attn_mask.requires_grad):
            return NotImplemented
        operands = autocast_operands(query.device, query, key, value, attn_mask)
        return run_shapes(AttentionKernel(self._meter, is_causal, backend), *operands)

    def _cross_entropy(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, *rest: Any, reduction: str = "mean", **_: Any
    ) -> Any:
        if rest or weight is not None or target.is_floating_point() or input.dim() < 2:
            return NotImplemented
        logits = input.movedim(1, -1).reshape(-1, input.shape[1])
        losses = run_shapes(LossKernel(self._meter, 1), logits, target.reshape(-1))
        loss = reduced(losses.reshape(target.shape), reduction)
        return loss if torch.is_autocast_enabled(input.device.type) else loss.to(input.dtype)

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        return run_shapes(RowKernel(self._meter, 3), input, weight, bias)

    def _rms_norm(
        self, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        return run_shapes(RowKernel(self._meter, 2), input, weight)

    def _pointwise(self, input: Tensor, *_: Any, **__: Any) -> Any:
        return run_shapes(Kernel(self._meter, 1), input)

    def _softmax(self, input: Tensor, *rest: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
        dtype = next((value for value in rest if isinstance(value, torch.dtype)), dtype)  # third or fourth argument
        return run_shapes(SoftmaxKernel(self._meter, 1), input if dtype is None else input.to(dtype))

    def _grouped_mm(self, input: Tensor, mat2: Tensor, offs: Tensor | None = None, **_: Any) -> Any:
        # As many rows for every expert: how many there are is not known without data, nor does the work depend on it.
        if offs is None or input.dim() != 2 or mat2.dim() != 3:
            return NotImplemented
        count = mat2.shape[0]
        return grouped_mm_ref(input, mat2, [(group + 1) * input.shape[0] // count for group in range(count)])

    _gelu = _silu = _pointwise
