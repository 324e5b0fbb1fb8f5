"""What is loaded once and shared by all that ask for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import torch

Given = ParamSpec("Given")
Loaded = TypeVar("Loaded")


def remembered(count: int) -> Callable[[Callable[Given, Loaded]], Callable[Given, Loaded]]:
    """Remember what a function returned for its latest ``count`` arguments, and for files among them as they are.

    It is called on the CPU whatever device is the default where it is first asked: one that asks on the meta device,
    to learn shapes, must not leave tensors without numbers to all others.

    Args:
        count: How many results are kept.
    """

    def decorate(load: Callable[Given, Loaded]) -> Callable[Given, Loaded]:
        @lru_cache(maxsize=count)
        def on_the_cpu(stamps: Hashable, *args: Hashable, **kwargs: Hashable) -> Loaded:
            with torch.device("cpu"):
                return cast("Callable[..., Loaded]", load)(*args, **kwargs)

        @wraps(load)
        def found(*args: Given.args, **kwargs: Given.kwargs) -> Loaded:
            return on_the_cpu(_stamps((args, tuple(kwargs.values()))), *args, **kwargs)  # type: ignore[arg-type]

        return found

    return decorate


def _stamps(value: object) -> Hashable:
    """Return size and time of change of all files in tuples, so that one that is edited in place is read again."""
    if isinstance(value, tuple):
        return tuple(map(_stamps, value))
    if isinstance(value, Path) and value.exists():
        state = value.stat()
        return state.st_size, state.st_mtime_ns
    return None
