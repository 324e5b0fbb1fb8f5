"""PyTorch's switches of attention's implementations: only the math path while the engine computes.

The fused ones have no second derivative on any device. The switches hold for the whole process.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from hvp_engine.system.shared_state import Hold, SharedState

__all__ = ["math_attention"]

_CUDA: Any = torch.backends.cuda  # some of its functions have no type hints


class _Enabled(NamedTuple):
    """Which implementations attention may take, on CPUs too."""

    flash: bool
    mem_efficient: bool
    cudnn: bool
    math: bool


def math_attention() -> Hold[_Enabled]:
    """Hold the switches at the math path; may be nested, and entered by several threads at once."""
    return _switches.held()


def _change() -> _Enabled:
    flash, efficient = _CUDA.flash_sdp_enabled(), _CUDA.mem_efficient_sdp_enabled()
    before = _Enabled(flash, efficient, _CUDA.cudnn_sdp_enabled(), _CUDA.math_sdp_enabled())
    try:
        _write(_Enabled(flash=False, mem_efficient=False, cudnn=False, math=True))
        return before
    except BaseException:
        _write(before)
        raise


def _write(enabled: _Enabled) -> None:
    _CUDA.enable_flash_sdp(enabled.flash)
    _CUDA.enable_mem_efficient_sdp(enabled.mem_efficient)
    _CUDA.enable_cudnn_sdp(enabled.cudnn)
    _CUDA.enable_math_sdp(enabled.math)


_switches = SharedState(_change, _write)
