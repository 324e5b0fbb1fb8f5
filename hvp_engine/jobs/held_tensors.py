"""What a loss holds beside its code that decides its value: tensors, arrays and modules that are not the model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hvp_engine.problem.batches import fingerprint

_DEPTH = 3  # an object's attributes, a container there, one within it
_MOST = 10_000  # items of one; of more nothing is looked at


class HeldTensors:
    """Digests what is held, each module once, and nothing of the model: that is compared on its own."""

    def __init__(self, models: tuple[nn.Module, ...], describe: Callable[[nn.Module], str]) -> None:
        """Take the model, and its working copy where there is one.

        Args:
            models: What is left out, with all of its modules and tensors.
            describe: Puts class and settings of a module into words.
        """
        self._models, self._describe = models, describe
        self._passed: set[int] | None = None  # what was digested, and what is the model's

    def of(self, value: Any) -> list[str]:
        """Return digests of a value, or of what an object holds; none where there are no tensors in it."""
        if isinstance(value, (Tensor, np.ndarray, nn.Module)):
            return list(self._contents(value, _DEPTH))
        attributes = getattr(value, "__dict__", None)
        return list(self._contents(attributes, _DEPTH)) if isinstance(attributes, dict) else []

    def _contents(self, value: Any, depth: int) -> Iterator[str]:
        if isinstance(value, Tensor):
            # What came out of a graph, such as the latest loss, is no setting.
            if not (is_lazy(value) or value.is_meta or value.grad_fn is not None or id(value) in self._known()):
                yield fingerprint(value)
        elif isinstance(value, np.ndarray):
            if value.dtype != object and not isinstance(value, np.memmap):  # which is data, and may be any size
                yield fingerprint(value)
        elif isinstance(value, nn.Module):
            yield from self._of_module(value)
        elif isinstance(value, (list, tuple, Mapping)) and depth and len(value) <= _MOST:
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for key, item in items:
                shown = key if isinstance(key, (str, int)) else type(key).__name__  # others may show an address
                yield from (f"{shown}: {text}" for text in self._contents(item, depth - 1))

    def _of_module(self, module: nn.Module) -> Iterator[str]:
        known = self._known()
        if id(module) in known:
            return
        known.add(id(module))
        for name, part in module.named_modules():
            if part is module or id(part) not in known:
                known.add(id(part))
                yield f"{name}: {self._describe(part)}"
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            yield from (f"{name}: {text}" for text in self._contents(tensor, 0))

    def _known(self) -> set[int]:
        """Return what is passed over; looked up at the first tensor, since most losses hold none."""
        if self._passed is None:
            parts = [(*model.modules(), *model.parameters(), *model.buffers()) for model in self._models]
            self._passed = {id(part) for of_model in parts for part in of_model}
        return self._passed
