"""What is loaded once and shared by all that ask for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar, cast

import torch

Given = ParamSpec("Given")
Loaded = TypeVar("Loaded")


def remembered(count: int) -> Callable[[Callable[Given, Loaded]], Callable[Given, Loaded]]:
    """Remember what a function returned for its latest ``count`` arguments.

    It is called on the CPU whatever device is the default where it is first asked: one that asks on the meta device,
    to learn shapes, must not leave tensors without numbers to all others.

    Args:
        count: How many results are kept.
    """

    def decorate(load: Callable[Given, Loaded]) -> Callable[Given, Loaded]:
        @lru_cache(maxsize=count)
        def on_the_cpu(*args: Hashable, **kwargs: Hashable) -> Loaded:
            with torch.device("cpu"):
                return cast("Callable[..., Loaded]", load)(*args, **kwargs)

        return cast("Callable[Given, Loaded]", wraps(load)(on_the_cpu))

    return decorate
