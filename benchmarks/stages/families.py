"""Families of kernels by their names: where the time of a product goes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from .measuring import Ran

# The first that matches a kernel's name, or on a CPU an operation's.
_NAMES = {
    "attention": r"attention|flash|fmha",
    "head": r"cross_entropy|soft_?max|nll_loss",
    "norm": r"normalize|layer_?norm|rms_?norm",
    "gelu": r"activation|gelu",
    "gemm": r"gemm|cutlass|nvjet|xmma|cublas|wgmma|splitk|aten::(add)?mm|aten::b(add)?mm|aten::linear|aten::matmul",
    "casts": r"copy|memcpy|aten::_?to(_copy)?$|aten::clone|CatArray",
    "adds": r"CUDAFunctor_add|AddFunctor|aten::add|aten::sum|reduce_kernel",
    "fills": r"fill|memset|aten::zero|aten::empty",
}
_PATTERNS = {family: re.compile(pattern, re.IGNORECASE) for family, pattern in _NAMES.items()}
_HEAD = re.compile(r"cross_?entropy|log_?softmax|nllloss", re.IGNORECASE)
OTHER = "other"


def family(ran: Ran, classes: int) -> str:
    """Name the family of a kernel; matrix products, casts and sums of the head count as the head.

    Args:
        ran: The kernel.
        classes: The vocabulary, which is the size of nothing else.
    """
    if classes in ran.shapes or any(_HEAD.search(name) for name in ran.within):
        return "head"
    return next((name for name, pattern in _PATTERNS.items() if pattern.search(ran.name)), OTHER)


def by_family(kernels: Iterable[Ran], classes: int) -> dict[str, tuple[float, int]]:
    """Return microseconds and launches by family, the longest first."""
    time, count = Counter[str](), Counter[str]()
    for ran in kernels:
        name = family(ran, classes)
        time[name] += ran.us
        count[name] += 1
    return {name: (us, count[name]) for name, us in time.most_common()}
