"""PyTorch's global switches of float32 and 16-bit products: held as a whole while the engine computes.

PyTorch has two generations of them. The older (``allow_tf32``, ``set_float32_matmul_precision``) and the newer
(``fp32_precision``) are stored apart, and reading an older one while the newer ones contradict it raises: a model that
reads one, as ``torch.backends.cudnn.flags`` does, would fail. So both are always set, to the same; where a release
lacks a newer one, the older ones say the same.

The switches hold for the whole process. So they are read, set and restored once, by the first to enter and the last to
leave, and not while another thread computes with them.
"""

from __future__ import annotations

import functools
import operator
import threading
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hvp_engine.errors import ConfigurationError

__all__ = ["HeldSwitches", "is_ieee_on_cpu"]

# The newer switches, each before those that follow it where they are "none". That of all of oneDNN is not among them:
# PyTorch 2.9 to 2.13 set the one of all backends in its place.
_NAMES = (
    "backends",
    "backends.cudnn",  # of all CUDA libraries, cuBLAS too
    "backends.cuda.matmul",
    "backends.cudnn.conv",
    "backends.cudnn.rnn",
    "backends.mkldnn.matmul",
    "backends.mkldnn.conv",
    "backends.mkldnn.rnn",
)
_OF_CUDA = ("backends.cudnn", "backends.cuda.")
# Of cuBLAS: partial sums of split products, and, where the user asked for it, all of a product's.
_SHORT_SUMS = (
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)


def newer_switches(root: Any) -> dict[str, Any]:
    """Return what has an ``fp32_precision`` in ``root``, which is torch, by its name and in the order of the names."""
    found = {}
    for name in _NAMES:
        try:
            owner = operator.attrgetter(name)(root)
        except AttributeError:
            continue
        if hasattr(owner, "fp32_precision"):
            found[name] = owner
    return found


_BACKENDS: Any = torch.backends  # the newer switches are missing from PyTorch's type hints
_NEWER = newer_switches(torch)


class ProductSwitches(NamedTuple):
    """The state of all switches.

    Attributes:
        newer: ``fp32_precision`` by switch, in the order of ``_NEWER``: ``"ieee"``, ``"tf32"``, ``"bf16"``, or
            ``"none"`` to follow a more general switch.
        matmul: What ``torch.get_float32_matmul_precision`` returns.
        cudnn: ``torch.backends.cudnn.allow_tf32``.
        short_sums: Whether cuBLAS may add up in 16 bits what it multiplies in 16 bits, in the order of ``_SHORT_SUMS``.
    """

    newer: tuple[str, ...]
    matmul: str
    cudnn: bool
    short_sums: tuple[bool, ...]


class _Mode:
    """A state of the switches that is in force, or that comes back when those after it in ``_modes`` have ended.

    Attributes:
        tf32: Whether products of float32 are TF32 on CUDA.
        before: The state that it replaced.
        holders: How often each thread is inside, by the thread's number.
    """

    def __init__(self, *, tf32: bool, before: ProductSwitches) -> None:
        self.tf32 = tf32
        self.before = before
        self.holders: dict[int, int] = {}


_lock = threading.RLock()  # the garbage collector may end a context while the thread begins another
_modes: list[_Mode] = []


class HeldSwitches:
    """A context in which products of float32 are IEEE float32 everywhere, or TF32 on CUDA alone.

    May be nested, and entered by several threads at once that want the same: then nothing is set. A thread that wants
    the other mode inside of the one gets it, and the former one afterwards, but only while no other thread is inside;
    until then no other thread may enter. Who may not is refused rather than made to wait: threads that share work may
    already be waiting for one another.

    Raises:
        ConfigurationError: On entering, where another thread is in the way.
    """

    def __init__(self, *, tf32: bool) -> None:
        self._tf32 = tf32
        self._mode: _Mode | None = None

    def __enter__(self) -> None:
        self._thread = thread = threading.get_ident()
        try:
            with _lock:
                mode = _modes[-1] if _modes else None
                if mode is None or mode.tf32 != self._tf32 or len(_modes) > 1:
                    mode = _changed(mode, thread, tf32=self._tf32)
                mode.holders[thread] = mode.holders.get(thread, 0) + 1
                self._mode = mode
        except BaseException:  # an interrupt, or the error above: nobody will leave what has been entered
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with _lock:
            if self._mode is not None:
                holders = self._mode.holders
                holders[self._thread] -= 1
                if not holders[self._thread]:
                    del holders[self._thread]
            while _modes and not _modes[-1].holders:
                _end_innermost()


def is_ieee_on_cpu() -> bool:
    """Say whether products of float32 on a CPU are IEEE float32 as the switches are, without touching any of them."""
    switches = [switch for name, switch in _NEWER.items() if not name.startswith(_OF_CUDA)]
    if any(switch.fp32_precision not in ("ieee", "none") for switch in switches):
        return False
    _use_up_warning()
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the older switches contradict the newer ones
        return False


def _changed(mode: _Mode | None, thread: int, *, tf32: bool) -> _Mode:
    """Return the mode for a thread that cannot join just any other, changing the switches if need be.

    Of several modes one thread holds all, so that the innermost one tells which.
    """
    if mode is not None and mode.holders.keys() - {thread}:
        raise ConfigurationError(
            'Two threads want products of float32 in different modes at once: precision="tf32" and another one. '
            "PyTorch's switches of these hold for the whole process; use one precision in all threads, let one "
            "computation end before the other begins, or compute in two processes."
        )
    if mode is not None and mode.tf32 == tf32:
        return mode
    depth, before = len(_modes), _read()
    try:
        _modes.append(_Mode(tf32=tf32, before=before))
        _write(_uniform(tf32=tf32))
    except BaseException:
        del _modes[depth:]
        _write(before)
        raise
    return _modes[-1]


def _end_innermost() -> None:
    """Set what the innermost mode replaced, from the beginning if an interrupt comes in between."""
    before = _modes[-1].before
    try:
        _write(before)
    except BaseException:
        _write(before)
        raise
    finally:
        _modes.pop()


def _uniform(*, tf32: bool) -> ProductSwitches:
    """Return the state in which products of float32 are IEEE float32 everywhere, or TF32 on CUDA alone."""
    newer = tuple("tf32" if tf32 and name.startswith(_OF_CUDA) else "ieee" for name in _NEWER)
    return ProductSwitches(newer, "high" if tf32 else "highest", tf32, (False,) * len(_SHORT_SUMS))


def _read() -> ProductSwitches:
    """Return the present state and leave the newer switches at IEEE: to be followed by :func:`_write`."""
    newer: list[str] = []
    try:
        for switch in _NEWER.values():  # one that is "none" shows what it follows, unless that is "none" by now
            newer.append(str(switch.fp32_precision))
            switch.fp32_precision = "none"
        for switch in _NEWER.values():
            switch.fp32_precision = "ieee"
        _use_up_warning()
        try:
            cudnn = bool(_BACKENDS.cudnn.allow_tf32)
        except RuntimeError:  # it contradicts the newer switches, none of which allows TF32 now
            cudnn = True
        matmul = torch.get_float32_matmul_precision()
        short_sums = tuple(bool(getattr(_BACKENDS.cuda.matmul, name)) for name in _SHORT_SUMS)
        return ProductSwitches(tuple(newer), matmul, cudnn, short_sums)
    except BaseException:
        _write_newer(newer)
        raise


def _write(switches: ProductSwitches) -> None:
    """Set every switch."""
    torch.set_float32_matmul_precision(switches.matmul)
    _BACKENDS.cudnn.allow_tf32 = switches.cudnn
    _write_newer(switches.newer)  # last: the older switches set some of these
    for name, value in zip(_SHORT_SUMS, switches.short_sums, strict=True):
        if getattr(_BACKENDS.cuda.matmul, name) != value:  # writing one resets how sums are split
            setattr(_BACKENDS.cuda.matmul, name, value)


def _write_newer(values: Sequence[str]) -> None:
    """Set the newer switches, or those of them that were reached when the values were read."""
    for switch, value in zip(_NEWER.values(), values, strict=False):
        switch.fp32_precision = value


@functools.cache
def _use_up_warning() -> None:
    """Draw PyTorch 2.9's warning about the older switches, which comes once per process: the user did not use them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.get_float32_matmul_precision()
