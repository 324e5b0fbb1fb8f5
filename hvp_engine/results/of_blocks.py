"""What every result with numbers of blocks is: a table, and a mapping of the blocks' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from hvp_engine.results.tabular import Tabular
from hvp_engine.system.formatting import first_names

T = TypeVar("T")


class OfBlocks(Tabular, Mapping[str, T], Generic[T]):
    """A mapping of block names to what was found of each, in the order of the blocks."""

    _blocks: Mapping[str, T]

    def __getitem__(self, name: str) -> T:
        if name not in self._blocks:
            # A mapping's own error: "in" and get() rely on it.
            raise KeyError(f"{name!r} is none of the blocks {first_names(list(self))}.")
        return self._blocks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"
