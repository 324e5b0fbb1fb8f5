"""Eigenpairs of one block, with the residuals that were measured; written to run folders, and read from them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.smoothing import FloatArray
from hvp_engine.system.formatting import first_names
from hvp_engine.system.json_files import damaged
from hvp_engine.system.run_files import MANIFEST, SPECTRA, read_manifest, read_spectra, write_run
from hvp_engine.system.tensor_files import Layout, Tensors

_LARGEST = 1 << 62  # no count of anything is larger
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_NUMBERS = ("values", "residuals")


class Piece(NamedTuple):
    """One tensor of a block, as part of its vectors.

    Attributes:
        name: Of the parameter, with the index of what is taken of it.
        shape: Of the piece.
    """

    name: str
    shape: tuple[int, ...]


class Effort(NamedTuple):
    """What eigenpairs took.

    Attributes:
        products: With the block, all of them.
        until_converged: Those until the wanted pairs had first converged, by what was known then; later ones look for
            further copies of eigenvalues and confirm the residuals. 0 where they did not.
        ended_by: ``"converged"``; ``"noise"``: more products did not lower the residuals; ``"maxiter"``.
    """

    products: int
    until_converged: int
    ended_by: str


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Some eigenpairs of one block, in ascending order of the values, as SciPy and NumPy give them.

    Attributes:
        name: Of the block.
        numel: Length of a vector.
        which: Which pairs were asked for.
        values: (k,) float64: Rayleigh quotients of the vectors.
        residuals: (k,) float64: ||Hx - value x|| for unit vectors, from the products that the vectors consist of, which
            one more confirmed, or measured by a product each. There is an eigenvalue that near to each value.
        tolerance: What was asked for.
        size: Largest magnitude of an eigenvalue that was found, to which the tolerance is relative.
        effort: What they took.
        pieces: The tensors that the vectors consist of, in order.
        stored: (k, numel) unit vectors on the CPU; None where none were asked for.
    """

    name: str
    numel: int
    which: str
    values: FloatArray
    residuals: FloatArray
    tolerance: float
    size: float
    effort: Effort
    pieces: Sequence[Piece]
    stored: Tensor | None

    @property
    def vectors(self) -> Tensor:
        """The unit eigenvectors as rows, (k, numel), on the CPU.

        Raises:
            ConfigurationError: None were kept.
        """
        if self.stored is None:
            raise ConfigurationError(f"The eigenvectors of {self.name!r} were not kept; call eigsh with vectors=True.")
        return self.stored

    @property
    def converged(self) -> NDArray[np.bool_]:
        """(k,): whether the residual is at most ``tolerance * size``."""
        return np.asarray(self.residuals <= self.tolerance * self.size)

    @property
    def products(self) -> int:
        """Products with the block, those that measured the residuals among them."""
        return self.effort.products

    def by_parameter(self) -> dict[str, Tensor]:
        """Return the eigenvectors as {parameter name: (k, *shape)}; views of ``vectors``.

        A name of a block that has only part of a parameter ends with the part's index.

        Raises:
            ConfigurationError: None were kept.
        """
        sizes = [math.prod(piece.shape) for piece in self.pieces]
        parts = torch.split(self.vectors, sizes, dim=1)
        return {
            piece.name: part.reshape(len(part), *piece.shape) for piece, part in zip(self.pieces, parts, strict=True)
        }

    def record(self) -> dict[str, Any]:
        """Return everything but the vectors as plain data."""
        return {
            "name": self.name,
            "numel": self.numel,
            "which": self.which,
            "values": self.values.tolist(),
            "residuals": self.residuals.tolist(),
            "converged": self.converged.tolist(),
            "tolerance": self.tolerance,
            "size": self.size,
            "products": self.effort.products,
            "until_converged": self.effort.until_converged,
            "ended_by": self.effort.ended_by,
        }

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        figsize: tuple[float, float] | None = None,
        scale: str = "linear",
        ax: Any = None,
    ) -> Any:
        """Draw the values with their residuals; arguments, result and errors are those of ``Eigensystem.plot``."""
        from hvp_engine.results.figures import eigenvalues  # noqa: PLC0415 - matplotlib takes half a second to import

        panels = {self.name: eigenvalues.Panel(*self.panel())}
        return eigenvalues.plot_panels(panels, path, figsize=figsize, scale=scale, ax=ax)

    def panel(self) -> tuple[int, FloatArray, FloatArray, NDArray[np.bool_]]:
        """Return what a figure shows of it: its parameters, values, residuals, and which have converged."""
        return self.numel, self.values, self.residuals, self.converged

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``manifest.json`` and ``spectra.safetensors`` into a folder, which is made if needed.

        Raises:
            RunFolderError: If a file cannot be written.
        """
        write([self], {}, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Eigenpairs:
        """Read a folder with the eigenpairs of one block; every array has the bits that were saved.

        Raises:
            ConfigurationError: It has several; read them by ``Eigensystem.load``.
            RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
        """
        _, pairs = read(folder)
        if len(pairs) > 1:
            raise ConfigurationError(
                f"{os.fspath(folder)} has eigenpairs of {len(pairs)} blocks ({first_names([p.name for p in pairs])}); "
                "read them by Eigensystem.load."
            )
        return pairs[0]


def write(pairs: Sequence[Eigenpairs], manifest: Mapping[str, Any], folder: str | os.PathLike[str]) -> None:
    """Write eigenpairs of some blocks into a folder.

    Args:
        pairs: One or more.
        manifest: The facts of the run.
        folder: Where.

    Raises:
        ConfigurationError: If the manifest cannot be written as JSON.
        RunFolderError: If a file cannot be written.
    """
    tensors: dict[str, Any] = {}
    for found in pairs:
        tensors |= {f"{found.name}/{key}": getattr(found, key) for key in _NUMBERS}
        if found.stored is not None:
            tensors[f"{found.name}/vectors"] = found.stored
    kept: Tensors = tensors
    write_run(folder, {"run": dict(manifest), "blocks": [_entry(found) for found in pairs]}, kept)


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Eigenpairs]]:
    """Return the facts of a run and its eigenpairs.

    Raises:
        RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
    """
    document = read_manifest(folder)
    facts, blocks = document.get("run"), document.get("blocks")
    path = Path(folder) / MANIFEST
    if not isinstance(facts, dict) or not isinstance(blocks, list) or not blocks:
        raise damaged(path, "its facts or its blocks are missing")
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for block in blocks:
        if not _is_entry(block) or f"{block['name']}/values" in layout:
            raise damaged(path, "an entry of its blocks is not one of eigenpairs, or is there twice")
        layout |= _layout(block)
    tensors = read_spectra(folder, document, layout)
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise damaged(Path(folder) / SPECTRA, f"{name!r} has numbers that are not finite")
    return facts, [_eigenpairs(block, tensors) for block in blocks]


def _entry(found: Eigenpairs) -> dict[str, Any]:
    """Return what a manifest says of a block, so that its arrays can be read."""
    dtype = None if found.stored is None else str(found.stored.dtype).removeprefix("torch.")
    pieces = [[piece.name, list(piece.shape)] for piece in found.pieces]
    return {**found.record(), "pieces": pieces, "vectors": dtype}


def _is_entry(block: object) -> bool:
    """Say whether an entry has a name, and facts that fit each other."""
    match block:
        case {
            "name": str(name),
            "numel": int(numel),
            "which": str(),
            "values": [*values],
            "tolerance": float(),
            "size": float(),
            "products": int(),
            "until_converged": int(),
            "ended_by": str(),
            "pieces": [*pieces],
            "vectors": None | "float32" | "float64",
        }:
            sizes = [_size(piece) for piece in pieces]
            return bool(name) and 1 <= len(values) <= numel < _LARGEST and None not in sizes and sum(sizes) == numel
    return False


def _size(piece: object) -> Any:
    """Return how many numbers a piece of an entry has; None where it is none."""
    match piece:
        case [str(), [*shape]] if all(type(size) is int and 0 <= size < _LARGEST for size in shape):
            return math.prod(shape)
    return None


def _layout(block: Mapping[str, Any]) -> Layout:
    """Return dtype and shape of every array of a block."""
    name, k = block["name"], len(block["values"])
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        f"{name}/{key}": (torch.float64, (k,)) for key in _NUMBERS
    }
    if block["vectors"] is not None:
        layout[f"{name}/vectors"] = (_DTYPES[block["vectors"]], (k, block["numel"]))
    return layout


def _eigenpairs(block: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Eigenpairs:
    name = block["name"]
    values, residuals = (tensors[f"{name}/{key}"].numpy() for key in _NUMBERS)
    return Eigenpairs(
        name,
        block["numel"],
        block["which"],
        values,
        residuals,
        block["tolerance"],
        block["size"],
        Effort(block["products"], block["until_converged"], block["ended_by"]),
        tuple(Piece(piece, tuple(shape)) for piece, shape in block["pieces"]),
        tensors.get(f"{name}/vectors"),
    )
