"""Freed memory is kept in the process while the engine works.

By default glibc gives every large block back to the kernel at once, so that each large temporary is mapped in
and cleared again page by page.
"""

from __future__ import annotations

from hvp_engine.kernels import loader
from hvp_engine.system.shared_state import Hold, SharedState

__all__ = ["give_back", "retained_heap"]

# Blocks up to 1 GiB come from the heap, which keeps up to 1 GiB of free memory at its end.
_RETAINED = 1 << 30
# Where glibc's own adjustment of the two thresholds ends, as blocks of that size come and go. Setting them once
# switches that adjustment off for good: its lower starting values would make the caller's own work slower than before.
_ADJUSTED = (32 << 20, 64 << 20)


def retained_heap() -> Hold[None]:
    """Let freed large blocks be reused inside the `with` block, and return them to the kernel after it.

    May be nested and used from several threads; the last exit gives the allocator the thresholds that it would have
    found by itself. Where the extension is missing or the allocator refuses, memory comes and goes as before.
    """
    return _heap.held()


def give_back() -> None:
    """Return free memory to the kernel, wherever it lies."""
    if loader.missing_reason is None:
        loader.native.trim_heap()


def _retain() -> None:
    if loader.missing_reason is None:
        loader.native.set_malloc_thresholds(_RETAINED, _RETAINED)


def _return(_: None) -> None:
    if loader.missing_reason is None:
        loader.native.set_malloc_thresholds(*_ADJUSTED)
    give_back()


_heap = SharedState(_retain, _return)
