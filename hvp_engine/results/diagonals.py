"""Diagonals of blocks with a bar for every entry: kept, saved, shaped like the parameters, tabulated."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from hvp_engine.results.by_block import ByBlock, read_blocks
from hvp_engine.results.estimate import relative
from hvp_engine.results.sphere import student
from hvp_engine.results.tabular import Cells
from hvp_engine.system import run_files
from hvp_engine.system.formatting import format_count, format_number
from hvp_engine.system.json_files import damaged
from hvp_engine.system.run_files import SPECTRA

Part = tuple[str, tuple[int, ...]]
_ARRAYS = ("value", "stderr", "half")


@dataclass(frozen=True, eq=False)
class Diagonal:
    """The diagonal of one block's matrix; all tensors are float64 on the CPU, flat as the block's vectors are.

    Attributes:
        value: The entries, (numel,).
        stderr: Standard error of each, (numel,); what the products' own error may be is in it.
        half: Half-width of each entry's 95 % bar, (numel,).
        parts: Name and shape of the tensors that the block is made of, in the order of its vectors.
    """

    value: Tensor
    stderr: Tensor
    half: Tensor
    parts: tuple[Part, ...]

    @property
    def low(self) -> Tensor:
        """Lower ends of the 95 % bars, (numel,)."""
        return self.value - self.half

    @property
    def high(self) -> Tensor:
        """Upper ends of the 95 % bars, (numel,)."""
        return self.value + self.half

    @property
    def error(self) -> float:
        """About how far the whole diagonal is off: length of the error, relative to that of the diagonal."""
        return relative(float(self.stderr.norm()), float(self.value.norm()))

    def tensors(self, flat: Tensor | None = None) -> dict[str, Tensor]:
        """Return the entries shaped like the parameters, by parameter name.

        A slice of a parameter has the shape of the slice; where a block has several pieces of one parameter, these are
        ``name[0]``, ``name[1]`` and so on.

        Args:
            flat: What to shape; None shapes the entries.
        """
        pieces = torch.split(self.value if flat is None else flat, [math.prod(shape) for _, shape in self.parts])
        times, seen = Counter(name for name, _ in self.parts), Counter[str]()
        shaped: dict[str, Tensor] = {}
        for (name, shape), piece in zip(self.parts, pieces, strict=True):
            shaped[name if times[name] == 1 else f"{name}[{seen[name]}]"] = piece.reshape(shape)
            seen[name] += 1
        return shaped


class Diagonals(ByBlock[Diagonal]):
    """The diagonal of every block."""

    def record(self) -> dict[str, Any]:
        """Return what fits into plain data: sizes, sums and errors, not the entries."""
        return {"blocks": [{"name": name, **_facts(found)} for name, found in self.items()]}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` and ``spectra.safetensors`` into a folder, which is made if needed.

        Raises:
            ConfigurationError: If the manifest cannot be written as JSON.
            RunFolderError: If a file cannot be written.
        """
        blocks = [{"name": name, **_facts(found), "parts": _listed(found.parts)} for name, found in self.items()]
        run_files.write_run(folder, {"run": self.manifest, "blocks": blocks}, self.arrays())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Diagonals:
        """Read a run folder; every number has the bits that were saved.

        Raises:
            RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
        """
        document, blocks, path = read_blocks(folder)
        numel = {name: block["numel"] for name, block in blocks.items()}
        parts = {name: _parts(block.get("parts"), numel[name], path) for name, block in blocks.items()}
        layout = {f"{name}/{key}": (torch.float64, (size,)) for name, size in numel.items() for key in _ARRAYS}
        tensors = run_files.read_spectra(folder, document, layout)
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise damaged(Path(folder) / SPECTRA, "its numbers are not all finite")
        found = {}
        for name in numel:
            value, stderr, half = (tensors[f"{name}/{key}"] for key in _ARRAYS)
            found[name] = Diagonal(value, stderr, half, parts[name])
        return cls(found, numel, document["run"])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the entries of every diagonal with their errors, as :class:`Diagonal` has them."""
        return {f"{name}/{key}": getattr(found, key).numpy() for name, found in self.items() for key in _ARRAYS}

    def _cells(self) -> Cells:
        titles = ("parameters", "mean", "smallest", "largest", "error", "products")
        rows = [
            (
                name,
                (
                    format_count(self.numel[name]),
                    *(format_number(float(x)) for x in (found.value.mean(), found.value.min(), found.value.max())),
                    f"{format_number(100 * found.error, 2)} %",
                    self.products(name),
                ),
            )
            for name, found in self.items()
        ]
        return Cells(titles, rows)


def diagonal(value: Tensor, variance: Tensor, probes: int | None, noise: float, parts: Sequence[Part]) -> Diagonal:
    """Put bars around the entries of a diagonal.

    Args:
        value: The entries, (numel,) float64.
        variance: By chance, of each.
        probes: Random vectors that showed that variance; None where nothing was left to chance.
        noise: Standard error that the products bring to an entry.
        parts: As in :class:`Diagonal`.
    """
    times = 2.0 if probes is None else student(probes - 1)
    floor = noise * noise
    return Diagonal(value, (variance + floor).sqrt(), (times**2 * variance + 4.0 * floor).sqrt(), tuple(parts))


def _facts(found: Diagonal) -> dict[str, Any]:
    value, error = found.value, found.error
    return {
        "numel": value.numel(),
        "mean": float(value.mean()),
        "smallest": float(value.min()),
        "largest": float(value.max()),
        "error": error if math.isfinite(error) else None,
    }


def _listed(parts: Sequence[Part]) -> list[list[Any]]:
    return [[name, list(shape)] for name, shape in parts]


def _parts(listed: object, numel: int, path: Path) -> tuple[Part, ...]:
    """Read names and shapes of the tensors of a block."""
    parts: list[Part] = []
    for part in listed if isinstance(listed, list) else []:
        match part:
            case [str(name), [*shape]] if all(type(size) is int and size > 0 for size in shape):
                parts.append((name, tuple(shape)))
            case _:
                raise damaged(path, "a part of a block is none")
    if sum(math.prod(shape) for _, shape in parts) != numel:
        raise damaged(path, "the parts of a block do not have its size")
    return tuple(parts)
