"""PyTorch's global switches of float32 and bfloat16 products: read, set and restored as a whole.

PyTorch has two generations of them. The older (``allow_tf32``, ``set_float32_matmul_precision``) and the newer
(``fp32_precision``) are stored apart, and reading an older one while the newer ones contradict it raises: a model that
reads one, as ``torch.backends.cudnn.flags`` does, would fail. So both are always set, to the same.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import torch

__all__ = ["ProductSwitches", "read_switches", "uniform_switches", "write_switches"]

_BACKENDS: Any = torch.backends  # the newer switches are missing from PyTorch's type hints

# The newer switches, each before those that follow it where they are "none". That of all of oneDNN is not among them:
# PyTorch 2.9 to 2.13 set the one of all backends in its place.
_NEWER = (
    _BACKENDS,
    _BACKENDS.cudnn,  # of all CUDA libraries, cuBLAS too
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
    _BACKENDS.mkldnn.rnn,
)
_OF_CUDA = (_BACKENDS.cudnn, _BACKENDS.cuda.matmul, _BACKENDS.cudnn.conv, _BACKENDS.cudnn.rnn)


class ProductSwitches(NamedTuple):
    """The state of all switches.

    Attributes:
        newer: ``fp32_precision`` by switch, in the order of ``_NEWER``: ``"ieee"``, ``"tf32"``, ``"bf16"``, or
            ``"none"`` to follow a more general switch.
        matmul: What ``torch.get_float32_matmul_precision`` returns.
        cudnn: ``torch.backends.cudnn.allow_tf32``.
        bf16_sums: Whether cuBLAS may add partial sums of bfloat16 products in bfloat16.
    """

    newer: tuple[str, ...]
    matmul: str
    cudnn: bool
    bf16_sums: bool


def uniform_switches(*, tf32: bool) -> ProductSwitches:
    """Return the state in which products of float32 are IEEE float32 everywhere, or TF32 on CUDA alone."""
    newer = tuple("tf32" if tf32 and switch in _OF_CUDA else "ieee" for switch in _NEWER)
    return ProductSwitches(newer, "high" if tf32 else "highest", tf32, bf16_sums=False)


def read_switches() -> ProductSwitches:
    """Return the present state and leave the newer switches at IEEE: to be followed by :func:`write_switches`."""
    newer = []
    for switch in _NEWER:  # one that is "none" shows what it follows, unless that is "none" by now
        newer.append(str(switch.fp32_precision))
        switch.fp32_precision = "none"
    for switch in _NEWER:
        switch.fp32_precision = "ieee"
    _use_up_warning()
    try:
        cudnn = bool(_BACKENDS.cudnn.allow_tf32)
    except RuntimeError:  # it contradicts the newer switches, none of which allows TF32 now
        cudnn = True
    matmul = torch.get_float32_matmul_precision()
    return ProductSwitches(tuple(newer), matmul, cudnn, _BACKENDS.cuda.matmul.allow_bf16_reduced_precision_reduction)


def write_switches(switches: ProductSwitches) -> None:
    """Set every switch."""
    torch.set_float32_matmul_precision(switches.matmul)
    _BACKENDS.cudnn.allow_tf32 = switches.cudnn
    for switch, value in zip(_NEWER, switches.newer, strict=True):  # last: the older switches set some of these
        switch.fp32_precision = value
    matmul = _BACKENDS.cuda.matmul
    if matmul.allow_bf16_reduced_precision_reduction != switches.bf16_sums:  # writing it resets how sums are split
        matmul.allow_bf16_reduced_precision_reduction = switches.bf16_sums


@functools.cache
def _use_up_warning() -> None:
    """Draw PyTorch 2.9's warning about the older switches, which comes once per process: the user did not use them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.get_float32_matmul_precision()
