"""Freed memory is kept in the process while the engine works.

By default glibc gives every large block back to the kernel at once, so that each large temporary is mapped in
and cleared again page by page.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hvp_engine.kernels import loader

__all__ = ["retained_heap"]

# Blocks up to 1 GiB come from the heap, which keeps up to 1 GiB of free memory at its end.
_RETAINED = 1 << 30
# The values that glibc starts with; its own later adjustment of them stays switched off after the first use.
_DEFAULT = 128 << 10

_lock = threading.Lock()
_depth = 0


@contextmanager
def retained_heap() -> Iterator[None]:
    """Let freed large blocks be reused inside the `with` block, and return them to the kernel after it.

    May be nested and used from several threads; the outermost exit restores the allocator's defaults. Where
    the extension is missing or the allocator refuses, memory comes and goes as before.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _depth  # noqa: PLW0603
    with _lock:
        _depth += 1
        if _depth == 1 and loader.missing_reason is None:
            loader.native.set_malloc_thresholds(_RETAINED, _RETAINED)


def _leave() -> None:
    global _depth  # noqa: PLW0603
    with _lock:
        _depth -= 1
        if _depth == 0 and loader.missing_reason is None:
            loader.native.set_malloc_thresholds(_DEFAULT, _DEFAULT)
            loader.native.trim_heap()
