"""Logits that are not computed until somebody other than the cross-entropy asks for them.

A linear head (V classes, d < V) produces logits that a loss reduces at once. Inside `twice_differentiable(head)` the
head's `F.linear` returns a `HeadLogits`: hidden states and weights, with the shape and dtype of the logits. Slicing or
reshaping its leading dimensions, casts that lose nothing and a log-softmax over the classes keep it lazy;
`F.cross_entropy`, or `F.nll_loss` of the log-softmax, turns it into `linear_cross_entropy`; any other operation
computes the logits and goes on with them. The products have the dtype that they would have had where `F.linear` was
called, whatever autocast says where the loss is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops.head.curvature import HeadCurvature
from hvp_engine.ops.head.lazy_shapes import flattened, indexed, reshaped
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy
from hvp_engine.system.torch_private import make_wrapper

__all__ = ["FUSED_LOSSES", "FusedHead", "HeadLogits", "computed", "stay_lazy"]

_LOW = (torch.bfloat16, torch.float16)


class FusedHead:
    """The rule which weights are a head, and how its loss is computed.

    Attributes:
        weight: The head's weights (V, d).
        keep_logits: Keep the logits with the graph, see `linear_cross_entropy`.
    """

    def __init__(self, weight: Tensor, *, keep_logits: bool = False) -> None:
        """Describe a head.

        Args:
            weight: Its weights (V, d).
            keep_logits: Keep the logits with the graph: one product less in each second backward.
        """
        self.weight = weight
        self.keep_logits = keep_logits

    def matches(self, weight: Tensor) -> bool:
        """Say whether a linear map with these weights is the head."""
        return weight is self.weight

    def curvature(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> HeadCurvature | None:
        """Return the curvature to hand to the loss of these hidden states (N, d); None takes the general path."""
        del hidden, weight, bias
        return None

    def loss(self, logits: HeadLogits, target: Tensor, **options: Any) -> Tensor:
        """Return the cross-entropy of the logits (N, V) with class indices (N); options of `linear_cross_entropy`."""
        curvature = self.curvature(logits.hidden, logits.weight, logits.bias)
        return linear_cross_entropy(
            logits.hidden,
            logits.weight,
            target,
            logits.bias,
            keep_logits=self.keep_logits and curvature is None,
            curvature=curvature,
            **options,
        )


class HeadLogits(Tensor):
    """`F.linear(hidden, weight, bias)`, or its log-softmax over the classes, not computed yet.

    Attributes:
        hidden: Hidden states (..., d).
        weight: Head weights (V, d).
        bias: Head bias (V) or None.
        head: What computes the loss.
        autocast: The dtype of the products where autocast casts their operands to it; None where it casts nothing.
        normalised: Whether these are log-probabilities.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    head: FusedHead
    autocast: torch.dtype | None
    normalised: bool
    _dtype: torch.dtype
    _computed: Tensor | None

    @staticmethod
    def __new__(
        cls: type[HeadLogits],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: FusedHead,
    ) -> HeadLogits:
        """Stand for the logits of hidden states, as `F.linear` computes them here."""
        autocast = _autocast_dtype(hidden, weight)
        return cls._made(hidden, weight, bias, head, autocast, autocast or hidden.dtype, normalised=False)

    @classmethod
    def _made(
        cls,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: FusedHead,
        autocast: torch.dtype | None,
        dtype: torch.dtype,
        *,
        normalised: bool,
    ) -> HeadLogits:
        shape = (*hidden.shape[:-1], weight.shape[0])
        self: HeadLogits = make_wrapper(cls, shape, dtype=dtype, device=hidden.device)
        self.hidden, self.weight, self.bias, self.head = hidden, weight, bias, head
        self.autocast, self.normalised = autocast, normalised
        self._dtype, self._computed = dtype, None
        return self

    def compute(self) -> Tensor:
        """Return the logits themselves, attached to the graph; computed once."""
        if self._computed is None:
            logits = self.of_rows(self.hidden).to(self._dtype)
            if self.normalised:
                with _autocast(self.device, None):
                    logits = F.log_softmax(logits, -1)
            self._computed = logits
        return self._computed

    def of_rows(self, hidden: Tensor) -> Tensor:
        """Compute the logits of some hidden states, before any cast, as `F.linear` would have."""
        with self.arithmetic():
            return F.linear(hidden, self.weight, self.bias)

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        """Hold autocast as it was where `F.linear` was called."""
        return _autocast(self.device, self.autocast)

    def on_rows(self, hidden: Tensor) -> HeadLogits:
        """Return the logits of other hidden states through the same head."""
        return self._made(
            hidden, self.weight, self.bias, self.head, self.autocast, self._dtype, normalised=self.normalised
        )

    def as_type(self, dtype: torch.dtype, *, normalised: bool = False) -> HeadLogits:
        """Return the logits in another dtype, or their log-softmax in it."""
        return self._made(self.hidden, self.weight, self.bias, self.head, self.autocast, dtype, normalised=normalised)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Stay lazy where the operation allows it, else compute the logits and run the operation on them."""
        kwargs = kwargs or {}
        result = stay_lazy(func, args, kwargs)
        return func(*computed(args), **computed(kwargs)) if result is NotImplemented else result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse code that looks past `__torch_function__`: the logits have no storage."""
        raise ConfigurationError(
            f"{func} reached the uncomputed logits of a fused head past torch functions; pass it logits.clone(), or do "
            "not fuse the head."
        )


def stay_lazy(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of a call with `HeadLogits` that needs no logits, or NotImplemented."""
    if func in _METADATA:
        return Tensor.__torch_function__(func, (), args, kwargs)  # type: ignore[no-untyped-call]  # as of any tensor
    lazy = _LAZY.get(func)
    if not args and "input" in kwargs:
        args, kwargs = (kwargs["input"],), {name: value for name, value in kwargs.items() if name != "input"}
    if lazy is None or not args or not isinstance(args[0], HeadLogits):
        return NotImplemented
    return lazy(*args, **kwargs)


def computed(value: Any) -> Any:
    """Return the value with every `HeadLogits` in it replaced by the logits."""
    if isinstance(value, HeadLogits):
        return value.compute()
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(computed(entry) for entry in value)
    if isinstance(value, dict):
        return {key: computed(entry) for key, entry in value.items()}
    return value


def _autocast_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype | None:
    """Return the dtype in which autocast multiplies here; None where it casts nothing.

    Operands that are in one low precision already are as under an autocast to it, which adds nothing but a loss in
    float32.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        return None if hidden.dtype == torch.float64 else torch.get_autocast_dtype(kind)
    return hidden.dtype if hidden.dtype in _LOW and hidden.dtype == weight.dtype else None


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[None]:
    """Hold autocast to a dtype on, or off for None."""
    kind = device.type
    enabled = torch.is_autocast_enabled(kind)
    if enabled == (dtype is not None) and (dtype is None or torch.get_autocast_dtype(kind) == dtype):
        return contextlib.nullcontext()
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)


def _requires_grad(logits: HeadLogits) -> bool:
    inputs = (logits.hidden, logits.weight, logits.bias)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


def _getitem(logits: HeadLogits, index: Any) -> Any:
    return _moved(logits, indexed(logits.hidden, index))


def _reshape(logits: HeadLogits, *shape: Any, **named: Any) -> Any:
    return _moved(logits, reshaped(logits.hidden, logits.weight.shape[0], *shape, *named.values()))


def _flatten(logits: HeadLogits, start_dim: int = 0, end_dim: int = -1) -> Any:
    return _moved(logits, flattened(logits.hidden, start_dim, end_dim))


def _moved(logits: HeadLogits, hidden: Any) -> Any:
    return NotImplemented if hidden is NotImplemented else logits.on_rows(hidden)


def _float(logits: HeadLogits) -> Any:
    return _cast(logits, torch.float32)


def _type(logits: HeadLogits, dtype: Any = None) -> Any:
    return _cast(logits, dtype) if isinstance(dtype, torch.dtype) else NotImplemented


def _to(logits: HeadLogits, *args: Any, **kwargs: Any) -> Any:
    dtype = logits.dtype
    for target in (*args, *kwargs.values()):
        if isinstance(target, torch.dtype):
            dtype = target
        elif not (isinstance(target, (str, torch.device)) and logits.device == torch.device(target)):
            return NotImplemented
    return _cast(logits, dtype)


def _cast(logits: HeadLogits, dtype: torch.dtype) -> Any:
    """Cast to a dtype that has all of their values; NotImplemented for one that rounds them, or is no real one."""
    if dtype == logits.dtype:
        return logits
    widens = dtype.is_floating_point and torch.promote_types(logits.dtype, dtype) == dtype
    return logits.as_type(dtype) if widens and not logits.normalised else NotImplemented


def _contiguous(logits: HeadLogits) -> HeadLogits:
    return logits


def _log_softmax(logits: HeadLogits, dim: Any = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Any:
    """Normalise over the classes; NotImplemented for another dimension, or a dtype that rounds the logits."""
    if not isinstance(dim, int) or dim not in (-1, logits.hidden.dim() - 1):
        return NotImplemented
    if dtype is not None:
        logits = _cast(logits, dtype)
        if logits is NotImplemented:
            return NotImplemented
    # Whether autocast widens it depends on the device: what has no elements tells.
    found = F.log_softmax(logits.hidden.detach().new_empty(0, dtype=logits.dtype), 0, dtype=dtype).dtype
    return logits.as_type(found, normalised=True)


def _torch_log_softmax(logits: HeadLogits, dim: Any, dtype: torch.dtype | None = None) -> Any:
    return _log_softmax(logits, dim, dtype=dtype)


def _cross_entropy(
    logits: HeadLogits,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    legacy = size_average is not None or reduce is not None
    if legacy or not isinstance(target, Tensor) or target.is_floating_point() or logits.hidden.dim() != 2:
        return NotImplemented
    # The fused loss adds up low precision in float32; any other cast between head and loss is not its own.
    products = logits.autocast or logits.hidden.dtype
    if logits.dtype != products and not (logits.autocast is not None and logits.dtype == torch.float32):
        return NotImplemented
    widened = torch.is_autocast_enabled(logits.device.type) and logits.dtype in _LOW
    with logits.arithmetic():
        loss = logits.head.loss(
            logits,
            target,
            class_weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    return loss.to(torch.float32 if widened else logits.dtype)


def _nll_loss(
    logits: HeadLogits,
    target: Any,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    if not logits.normalised:
        return NotImplemented
    return _cross_entropy(logits, target, weight, size_average, ignore_index, reduce, reduction)


_METADATA = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.device.__get__,
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.dim,
    Tensor.size,
    Tensor.numel,
    Tensor.is_floating_point,
    Tensor.__len__,
}

_LAZY: dict[Any, Callable[..., Any]] = {
    Tensor.requires_grad.__get__: _requires_grad,  # type: ignore[attr-defined]
    Tensor.__getitem__: _getitem,
    Tensor.view: _reshape,
    Tensor.reshape: _reshape,
    torch.reshape: _reshape,
    Tensor.flatten: _flatten,
    torch.flatten: _flatten,
    Tensor.float: _float,
    Tensor.to: _to,
    Tensor.type: _type,
    Tensor.contiguous: _contiguous,
    F.log_softmax: _log_softmax,
    torch.log_softmax: _torch_log_softmax,
    Tensor.log_softmax: _torch_log_softmax,
    F.cross_entropy: _cross_entropy,
    F.nll_loss: _nll_loss,
}
FUSED_LOSSES = frozenset((F.cross_entropy, F.nll_loss))
