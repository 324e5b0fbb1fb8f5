"""PyTorch's own derivatives that are wrong without an error message, by the node that computes them.

Found by comparing second and third derivatives of PyTorch's operations with finite differences of the derivatives below
them, from PyTorch 2.9 to 2.13. `docs/wrong_second_derivatives.md` has a reproduction of each, which runs as a test: a
release that mends one of them fails it, and its row here can then be bound to older versions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from hvp_engine.operators.autograd_nodes import name_of


@dataclass(frozen=True)
class KnownWrong:
    """One wrong derivative.

    Attributes:
        operation: Name that users know it by.
        fault: What is wrong, a clause that follows the name.
        fix: What to do about it.
        holds: Says for a node whether it is one of the wrong ones.
    """

    operation: str
    fault: str
    fix: str
    holds: Callable[[Any], bool] = lambda _: True


def _repeats(node: Any) -> bool:
    """Say whether a max-unpooling writes several inputs to one place."""
    indices = node._saved_indices
    if type(indices) is not Tensor:  # a tensor without data, of a plan
        return False
    places = indices.flatten(-3 if name_of(node).startswith("MaxUnpool3D") else -2).sort(dim=-1).values
    return bool((places[..., 1:] == places[..., :-1]).any())


_NORMALIZATION = "has a wrong third derivative, and a loss that takes input gradients needs it"
_WRITTEN_OUT = "write the normalization out with mean and var, or take the input gradient out of the loss"
_UNPOOL = KnownWrong(
    "max_unpool",
    "has a wrong derivative where two inputs go to one place (overlapping pooling windows)",
    "pool with stride equal to kernel_size",
    _repeats,
)

KNOWN_WRONG: dict[str, KnownWrong] = {
    "WeightNormInterfaceBackward0": KnownWrong(
        "weight_norm",
        "has a wrong second derivative: its norm counts as a constant",
        "write the weight as g * v / torch.norm_except_dim(v, 2, dim)",
    ),
    "EmbeddingBackward0": KnownWrong(
        "embedding with scale_grad_by_freq=True",
        "gives a scaled gradient, which is no gradient of the loss",
        "set scale_grad_by_freq=False",
        lambda node: bool(node._saved_scale_grad_by_freq),
    ),
    "AsStridedScatterBackward0": KnownWrong(
        "as_strided_scatter", "has a wrong derivative", "use slice_scatter, index_put or torch.where"
    ),
    "GeneratedBackwardFor_torch_nn__linear_cross_entropy_batch_chunked_defaultBackward": KnownWrong(
        "linear_cross_entropy with options",
        "computes its derivatives in the forward pass and has no second one",
        "pass options=None",
    ),
    "GeneratedBackwardFor_torch_nn__linear_cross_entropy_batch_chunked_no_reduction_defaultBackward": KnownWrong(
        "linear_cross_entropy with options",
        "computes its derivatives in one chunk after the other and has no second one",
        "pass options=None",
    ),
    "MaxUnpool2DBackward0": _UNPOOL,
    "MaxUnpool3DBackward0": _UNPOOL,
    # In the graph of a loss these mean that it takes a gradient: the Hessian then needs their third derivative.
    "NativeLayerNormBackwardBackward0": KnownWrong("layer_norm", _NORMALIZATION, _WRITTEN_OUT),
    "NativeBatchNormBackwardBackward0": KnownWrong(
        "batch_norm in train mode", _NORMALIZATION, _WRITTEN_OUT, lambda node: bool(node._saved_train)
    ),
    "CudnnBatchNormBackwardBackward0": KnownWrong("batch_norm in train mode", _NORMALIZATION, _WRITTEN_OUT),
}


def known_wrong(node: Node) -> KnownWrong | None:
    """Return what is known to be wrong with the derivative that a node computes; None where nothing is."""
    known = KNOWN_WRONG.get(name_of(node))
    return known if known is not None and known.holds(node) else None
