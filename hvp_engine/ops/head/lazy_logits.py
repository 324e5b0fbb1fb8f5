"""Logits that are not computed until somebody other than the cross-entropy asks for them.

A linear head (V classes, d < V) produces logits that a loss reduces at once. Inside `twice_differentiable(head)` the
head's `F.linear` returns a `HeadLogits`: hidden states and weights, with the shape and dtype of the logits. Slicing or
reshaping its leading dimensions and casting keep it lazy; `F.cross_entropy` turns it into `linear_cross_entropy`; any
other operation computes the logits and goes on with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import EllipsisType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops.head.curvature import HeadCurvature
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy
from hvp_engine.system.torch_private import make_wrapper

__all__ = ["FusedHead", "HeadLogits", "computed", "stay_lazy"]


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
    """`F.linear(hidden, weight, bias)`, not computed yet.

    Attributes:
        hidden: Hidden states (..., d).
        weight: Head weights (V, d).
        bias: Head bias (V) or None.
        head: What computes the loss.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    head: FusedHead
    _dtype: torch.dtype
    _computed: Tensor | None

    @staticmethod
    def __new__(
        cls: type[HeadLogits],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: FusedHead,
        dtype: torch.dtype | None = None,
    ) -> HeadLogits:
        """Stand for the logits of hidden states, cast to ``dtype`` (None: what `F.linear` gives)."""
        if dtype is None:
            dtype = hidden.dtype
            if torch.is_autocast_enabled(hidden.device.type) and dtype != torch.float64:
                dtype = torch.get_autocast_dtype(hidden.device.type)
        shape = (*hidden.shape[:-1], weight.shape[0])
        self: HeadLogits = make_wrapper(cls, shape, dtype=dtype, device=hidden.device)
        self.hidden, self.weight, self.bias, self.head = hidden, weight, bias, head
        self._dtype, self._computed = dtype, None
        return self

    def compute(self) -> Tensor:
        """Return the logits themselves, attached to the graph; computed once."""
        if self._computed is None:
            self._computed = F.linear(self.hidden, self.weight, self.bias).to(self._dtype)
        return self._computed

    def on_rows(self, hidden: Tensor, dtype: torch.dtype | None = None) -> HeadLogits:
        """Return the logits of other hidden states through the same head."""
        return HeadLogits(hidden, self.weight, self.bias, self.head, dtype or self._dtype)

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


def _requires_grad(logits: HeadLogits) -> bool:
    inputs = (logits.hidden, logits.weight, logits.bias)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


def _getitem(logits: HeadLogits, index: Any) -> Any:
    """Index leading dimensions; NotImplemented when the classes are touched."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(entry, list) for entry in entries):
        return NotImplemented
    rank = logits.hidden.dim()
    consumed = sum(_consumed(entry) for entry in entries)
    ellipses = [i for i, entry in enumerate(entries) if isinstance(entry, EllipsisType)]
    if len(ellipses) == 1:
        entries[ellipses[0] : ellipses[0] + 1] = [slice(None)] * (rank - consumed)
        consumed = rank
    if consumed == rank and isinstance(entries[-1], slice) and entries[-1] == slice(None):
        entries, consumed = entries[:-1], rank - 1
    if consumed >= rank:
        return NotImplemented
    return logits.on_rows(logits.hidden[tuple(entries)])


def _consumed(entry: Any) -> int:
    """Return how many dimensions an index entry takes."""
    if entry is None or isinstance(entry, EllipsisType):
        return 0
    return entry.dim() if isinstance(entry, Tensor) and entry.dtype == torch.bool else 1


def _reshape(logits: HeadLogits, *shape: Any) -> Any:
    """Reshape leading dimensions; NotImplemented when the classes are mixed with them."""
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else list(shape)
    if not sizes or isinstance(sizes[0], torch.dtype):
        return NotImplemented
    classes, rows = logits.weight.shape[0], logits.hidden.shape[:-1].numel()
    leading = sizes[:-1]
    last_is_classes = sizes[-1] == classes or (
        sizes[-1] == -1 and -1 not in leading and torch.Size(leading).numel() == rows
    )
    if not last_is_classes or (-1 not in leading and torch.Size(leading).numel() != rows):
        return NotImplemented
    return logits.on_rows(logits.hidden.reshape(*leading, logits.hidden.shape[-1]))


def _flatten(logits: HeadLogits, start_dim: int = 0, end_dim: int = -1) -> Any:
    last = logits.hidden.dim() - 1
    end = end_dim % (last + 1)
    return NotImplemented if end == last else logits.on_rows(logits.hidden.flatten(start_dim, end))


def _float(logits: HeadLogits) -> HeadLogits:
    return logits.on_rows(logits.hidden, torch.float32)


def _to(logits: HeadLogits, *args: Any, **kwargs: Any) -> Any:
    (target,) = (*args, *kwargs.values()) if len(args) + len(kwargs) == 1 else (None,)
    if isinstance(target, torch.dtype) and target.is_floating_point:
        return logits.on_rows(logits.hidden, target)
    return (
        logits if isinstance(target, (str, torch.device)) and logits.device == torch.device(target) else NotImplemented
    )


def _contiguous(logits: HeadLogits) -> HeadLogits:
    return logits


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
    # A cast between head and loss rounds the logits; only those that the fused loss does by itself are none.
    accumulated = torch.is_autocast_enabled(logits.device.type) and logits.dtype == torch.float32
    if logits.dtype != logits.hidden.dtype and not accumulated:
        return NotImplemented
    return logits.head.loss(
        logits,
        target,
        class_weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


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
    Tensor.contiguous: _contiguous,
    F.cross_entropy: _cross_entropy,
}
