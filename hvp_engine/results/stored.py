"""Reading spectra from a run folder, of a stranger perhaps: sizes before bytes, and the numbers against each other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvp_engine.errors import HvpEngineError, RunFolderError
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.results.spectrum_checks import SINGLE_FIELDS
from hvp_engine.system import run_files
from hvp_engine.system.json_files import damaged
from hvp_engine.system.run_files import MANIFEST, SPECTRA, read_manifest, read_spectra
from hvp_engine.system.tensor_files import Layout

ARRAYS = ("alphas", "betas", "nodes", "weights", "steps", "residuals", "singles")
_EARLIER = ARRAYS[:5]  # of versions 1 and 2, which knew neither residuals nor single products

_LARGEST = 1 << 62  # no count of anything is larger


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Spectrum]]:
    """Return the facts of a run and its spectra.

    Raises:
        RunFolderError: If the folder is missing, damaged, foreign, or of a newer version.
    """
    document = read_manifest(folder)
    facts, blocks = document.get("run"), document.get("blocks")
    path = Path(folder) / MANIFEST
    if not isinstance(facts, dict) or not isinstance(blocks, list) or not blocks:
        raise damaged(path, "its facts or its blocks are missing")
    arrays = ARRAYS if document["format_version"] >= run_files.WITH_RESIDUALS else _EARLIER
    layout: dict[str, Layout] = {}
    for block in blocks:
        if not _is_block(block) or not (arrays is _EARLIER or _has_remainder(block)) or block["name"] in layout:
            raise damaged(path, "an entry of its blocks is not one, or is there twice")
        layout[block["name"]] = _layout(block, arrays)
    tensors = read_spectra(folder, document, {key: entry for block in layout.values() for key, entry in block.items()})
    return facts, [_spectrum(Path(folder), block, tensors, arrays) for block in blocks]


def entry(spectrum: Spectrum) -> dict[str, Any]:
    """Return what a manifest says of a spectrum, so that its arrays can be read."""
    return {
        "name": spectrum.name,
        "numel": spectrum.numel,
        "probes": spectrum.probes,
        "m": spectrum.alphas.shape[1],
        "singles": len(spectrum.singles),
        "deflated": spectrum.deflated,
        "noise": spectrum.noise,
        "reorthogonalized": spectrum.reorthogonalized,
    }


def _is_block(block: object) -> bool:
    """Say whether an entry has a name, and sizes that fit each other."""
    match block:
        case {"name": str(name), "numel": int(numel), "probes": int(probes), "m": int(m)}:
            sizes = (numel, probes, m)
            return bool(name) and all(type(size) is int and 1 <= size < _LARGEST for size in sizes)
    return False


def _has_remainder(block: Mapping[str, Any]) -> bool:
    """Say whether an entry has what version 3 added."""
    match block:
        case {"singles": int(singles), "deflated": int(deflated), "noise": float(), "reorthogonalized": bool()}:
            return all(type(size) is int and 0 <= size < _LARGEST for size in (singles, deflated))
    return False


def _layout(block: Mapping[str, Any], arrays: Sequence[str]) -> Layout:
    """Return dtype and shape of every array of a block."""
    probes, m = block["probes"], block["m"]
    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = dict.fromkeys(arrays, (torch.float64, (probes, m)))
    shapes |= {"betas": (torch.float64, (probes, m - 1)), "steps": (torch.int64, (probes,))}
    if "singles" in arrays:
        singles = (block["singles"], SINGLE_FIELDS)
        shapes |= {"residuals": (torch.float64, (probes,)), "singles": (torch.float64, singles)}
    return {f"{block['name']}/{key}": entry for key, entry in shapes.items()}


def _spectrum(
    folder: Path, block: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], arrays: Sequence[str]
) -> Spectrum:
    name = block["name"]
    given: dict[str, Any] = {key: tensors[f"{name}/{key}"].numpy() for key in arrays}
    given |= {key: block[key] for key in ("deflated", "noise", "reorthogonalized") if "singles" in arrays}
    try:
        with np.errstate(all="ignore"):  # numbers at the end of the range overflow, and are refused for it
            spectrum = Spectrum(name=name, numel=block["numel"], **given)
            fits = spectrum.is_quadrature
    except HvpEngineError as error:
        raise damaged(folder / SPECTRA, f"its numbers contradict each other ({error})") from error
    if not fits:
        raise RunFolderError(
            f"{folder / SPECTRA} is damaged: the nodes and weights of block {name!r} are not those of its alphas and "
            "betas; restore it from a copy, or run again in another folder."
        )
    return spectrum
