"""The calls of a replay as one CUDA graph: one launch in place of hundreds, which the host cannot make fast enough.

On an H100 a product with GPT-2's first block is 815 launches, 33 ms of work for the card and 58 for the host; those
with smaller models are the host's alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hvp_engine.system.failures import is_out_of_memory
from hvp_engine.system.formatting import first_line
from hvp_engine.system.warning_filters import without_sync_warnings

__all__ = ["Captures"]

log = logging.getLogger(__name__)


class Captures:
    """CUDA graphs that never run at once, and share their memory."""

    def __init__(self) -> None:
        """Begin without any."""
        self._pool: Any = None

    def of(self, calls: Sequence[Callable[[], object]], device: torch.device) -> Callable[[], object] | None:
        """Capture calls that have run before, so that all that they compile and load is there.

        Args:
            calls: Launches of kernels that read and write fixed memory, on the current stream.
            device: The GPU.

        Returns:
            What launches all of them; None where one cannot be captured, such as one for which the host waits.

        Raises:
            torch.OutOfMemoryError: There is no memory for what the calls allocate by themselves.
        """
        try:
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with _on(stream), _waiting_raises():  # first without: a capture that fails leaves more than an error
                _make(calls)
            self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                _make(calls)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            log.info("a product's launches are not captured: %s", first_line(error))
            return None
        return graph.replay


def _make(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


@contextmanager
def _on(stream: torch.cuda.Stream) -> Iterator[None]:
    """Let a stream be the current one, between what is before and after on the one that was."""
    before = torch.cuda.current_stream(stream.device)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield
    before.wait_stream(stream)


@contextmanager
def _waiting_raises() -> Iterator[None]:
    """Let PyTorch raise where the host would wait for the device."""
    with without_sync_warnings():
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)
