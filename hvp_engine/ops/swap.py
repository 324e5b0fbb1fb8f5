"""Unchanged models on the twice-differentiable operations.

`twice_differentiable()` intercepts calls of torch.nn.functional (however a module, a Hugging Face model or
user code reaches them) and runs the fused operation where it supports the arguments; any other call runs as
it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops.activations import gelu, silu
from hvp_engine.ops.applies import fused_applies, normalize_applies
from hvp_engine.ops.attention import attention
from hvp_engine.ops.cross_entropy import cross_entropy
from hvp_engine.ops.embedding import embedding
from hvp_engine.ops.embedding_bag import embedding_bag
from hvp_engine.ops.grouped_mm import grouped_mm_ref
from hvp_engine.ops.head.lazy_logits import FUSED_LOSSES, FusedHead, HeadLogits, computed, stay_lazy
from hvp_engine.ops.layer_norm import layer_norm
from hvp_engine.ops.rms_norm import rms_norm
from hvp_engine.ops.softmax import softmax
from hvp_engine.system.torch_private import GROUPED_PRODUCTS, SILU_FUNCTIONS, WEIGHT_NORM_FUNCTIONS, inside_transform

__all__ = ["REPLACEMENTS", "TwiceDifferentiable", "fuse_lm_head", "twice_differentiable"]


_HIDDEN = -1e20  # no score is as low; one added to it is lost in every dtype


# A replacement has the signature of what it replaces, and returns NotImplemented where it cannot serve.
def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    del cudnn_enable  # torch.layer_norm has it; it chooses an implementation, not a result
    if not (normalize_applies(input, weight, bias) or inside_transform()):
        return NotImplemented
    return layer_norm(input, normalized_shape, weight, bias, eps)


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Any:
    if not normalize_applies(input, weight, None):
        return NotImplemented
    return rms_norm(input, normalized_shape, weight, eps)


def _gelu(input: Tensor, *, approximate: str = "none") -> Any:
    return gelu(input, approximate) if fused_applies("activations", input) else NotImplemented


def _silu(input: Tensor, inplace: bool = False) -> Any:
    return NotImplemented if inplace or not fused_applies("activations", input) else silu(input)


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Any:
    # PyTorch's has no second derivative: that of its backward is missing.
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if dropout_p or not fused_applies("attention", query, key, value):
        return NotImplemented
    return attention(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    legacy = size_average is not None or reduce is not None
    if legacy or target.is_floating_point() or not fused_applies("cross_entropy", input):
        return NotImplemented
    return cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    del norm_type, sparse  # of max_norm only; how a gradient is stored, not what it is
    if max_norm is not None or scale_grad_by_freq or not fused_applies("embedding", weight):
        return NotImplemented
    return embedding(input, weight, padding_idx)


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    del norm_type, sparse  # as in _embedding
    if input.is_floating_point():  # the older order of the two
        input, weight = weight, input
    unsupported = max_norm is not None or scale_grad_by_freq or (input.dim() == 2) != (offsets is None)
    if unsupported or (per_sample_weights is not None and mode != "sum"):
        return NotImplemented
    return embedding_bag(input, weight, offsets, mode, per_sample_weights, include_last_offset, padding_idx)


def _softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Any:
    return NotImplemented if dim is None else _torch_softmax(input, dim, dtype)


def _torch_softmax(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    narrower = input.dtype == torch.float64 and dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not isinstance(dim, int) or not (narrower or fused_applies("softmax", input)):
        return NotImplemented
    return softmax(_in_range(input, dtype) if narrower and dtype is not None else input, dim, dtype)


def _without_hidden_rows(input: Tensor, dim: Any = None, *rest: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Detach the rows of a softmax whose every score is a mask's, and return its arguments."""
    if isinstance(dim, int) and input.is_floating_point():
        hidden = (input <= _HIDDEN).all(dim, keepdim=True)
        input = torch.where(hidden, input.detach(), input)
    return (input, dim, *rest), options


def _in_range(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Keep finite scores finite in a narrower dtype, with their derivatives.

    Models mask with the smallest number of the dtype they run in and then take the softmax in float32. In float64 that
    number becomes -inf, and a row of them, as left padding has, becomes NaN in place of the mean that it is in float32.
    """
    lowest = torch.finfo(dtype).min
    below = (scores < lowest) & (scores != -math.inf)
    return torch.where(below, scores - scores.detach() + lowest, scores)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # PyTorch's fused kernel has a wrong second derivative: its backward takes the norm for a constant.
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _grouped_mm(
    input: Tensor,
    mat2: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Any:
    # PyTorch's kernel has no float64.
    if input.dtype != torch.float64 or bias is not None or out_dtype not in (None, torch.float64):
        return NotImplemented
    if offs is None or input.dim() != 2 or mat2.dim() != 3:
        return NotImplemented
    return grouped_mm_ref(input, mat2, offs.tolist())


def _linear(head: FusedHead, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return HeadLogits(input, weight, bias, head) if head.matches(weight) else F.linear(input, weight, bias)


def _table(*rows: tuple[str, Callable[..., Any], Iterable[Callable[..., Any]]]) -> dict[Any, Any]:
    return {target: (name, replacement) for name, replacement, targets in rows for target in targets}


# What is replaced: name in the report, replacement, and every callable that leads to the operation.
REPLACEMENTS: dict[Callable[..., Any], tuple[str, Callable[..., Any]]] = _table(
    ("attention", _attention, (F.scaled_dot_product_attention,)),
    ("cross_entropy", _cross_entropy, (F.cross_entropy,)),
    ("embedding", _embedding, (F.embedding,)),
    ("embedding_bag", _embedding_bag, (F.embedding_bag,)),
    ("softmax", _softmax, (F.softmax,)),
    ("softmax", _torch_softmax, (torch.softmax, Tensor.softmax)),
    ("layer_norm", _layer_norm, (F.layer_norm, torch.layer_norm)),
    ("rms_norm", _rms_norm, (F.rms_norm, torch.rms_norm)),
    ("weight_norm", _weight_norm, WEIGHT_NORM_FUNCTIONS),
    ("gelu", _gelu, (F.gelu,)),
    ("grouped_mm", _grouped_mm, GROUPED_PRODUCTS),
    ("hardsigmoid", _hardsigmoid, (F.hardsigmoid,)),
    ("silu", _silu, (F.silu, *SILU_FUNCTIONS)),
)


def _transparent(function: Any) -> FunctionType:
    """Copy a function of PyTorch so that a mode sees the calls inside it instead of the call of it."""
    namespace = dict(
        function.__globals__,
        has_torch_function=lambda _tensors: False,
        has_torch_function_unary=lambda _tensor: False,
    )
    copy = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


# PyTorch runs the body of an intercepted function without the mode. These bodies contain calls to replace:
# attention, and whatever checkpointing recomputes during a backward pass.
_TRANSPARENT: dict[Any, Callable[..., Any]] = {
    function: _transparent(function)
    for function in (F.multi_head_attention_forward, torch.autograd.grad, Tensor.backward)
}


_PLAIN = frozenset((Tensor, nn.Parameter))


class TwiceDifferentiable(TorchFunctionMode):
    """The context manager that `twice_differentiable` returns.

    Attributes:
        replaced: How often each operation was replaced so far.
        head: The linear head whose logits stay uncomputed for the cross-entropy, or None.
        hidden_rows_are_constant: Whether a softmax gives no gradient to rows that a mask hides whole. Their scores are
            lost in the mask's huge number, so that differences of the gradient see constants where autograd, which
            passes the number by, does not; tests by differences leave such rows out.
    """

    def __init__(self, head: FusedHead | None = None) -> None:
        super().__init__()
        self.replaced: dict[str, int] = Counter()
        self.head = head
        self.hidden_rows_are_constant = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one intercepted call; PyTorch calls this with the mode switched off."""
        kwargs = kwargs or {}
        if func in _TRANSPARENT:
            with self:
                return _TRANSPARENT[func](*args, **kwargs)
        # Every access to a tensor comes by here: what is plain must pass quickly.
        if not _PLAIN.issuperset(types) and any(issubclass(kind, HeadLogits) for kind in types):
            result = stay_lazy(func, args, kwargs)
            if result is not NotImplemented:
                if func in FUSED_LOSSES:
                    self.replaced["linear_cross_entropy"] += 1
                return result
            args, kwargs = computed(args), computed(kwargs)
        if func is F.linear and self.head is not None:
            return _linear(self.head, *args, **kwargs)
        entry = REPLACEMENTS.get(func)
        if entry is not None:
            name, replacement = entry
            if name == "softmax" and self.hidden_rows_are_constant:
                args, kwargs = _without_hidden_rows(*args, **kwargs)
            result = replacement(*args, **kwargs)
            if result is not NotImplemented:
                self.replaced[name] += 1
                return result
        return func(*args, **kwargs)


def fuse_lm_head(model: nn.Module) -> TwiceDifferentiable:
    """Do what `twice_differentiable` does, and compute a language model's loss without its logits.

    While it is active, the output embedding of the model (`get_output_embeddings()` of a Hugging Face model, else the
    attribute `lm_head`) returns logits that are computed only if something other than `F.cross_entropy` uses them;
    `F.cross_entropy` becomes `linear_cross_entropy`, chunk by chunk. Slices, reshapes and casts between the two are
    followed, so that the model's own loss and any loss written with `F.cross_entropy` work unchanged.

    Example:
        >>> with fuse_lm_head(model):
        ...     loss = model(input_ids=tokens, labels=tokens).loss

    Args:
        model: A causal or masked language model with a linear head.

    Returns:
        A context manager, active in the thread that enters it.

    Raises:
        ConfigurationError: The model has no such head.
    """
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else getattr(model, "lm_head", None)
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ConfigurationError(
            f"{type(model).__name__} has no linear head that can be fused: neither get_output_embeddings() nor the "
            "attribute lm_head gives a module with a two-dimensional weight; call linear_cross_entropy in the loss."
        )
    return TwiceDifferentiable(FusedHead(weight))


def twice_differentiable() -> TwiceDifferentiable:
    """Replace torch.nn.functional calls by the fused, twice-differentiable operations while it is active.

    Calls that an operation does not support (dtype, device, dropout, in-place) run unchanged. Backward passes
    need not be inside, except those that recompute a forward pass (torch.utils.checkpoint): that must
    see the same operations as the first pass.

    Example:
        >>> with twice_differentiable() as mode:
        ...     loss = model(tokens).loss
        >>> mode.replaced
        {'layer_norm': 25, 'gelu': 12}

    Returns:
        A context manager (a torch.overrides.TorchFunctionMode), active in the thread that enters it.
    """
    return TwiceDifferentiable()
