"""MNIST as it is distributed: IDX files, compressed or not."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.samples import Images, Samples
from hvp_engine.experiments.data.source import digest, from_path, required

_UNSIGNED_BYTES = 8  # the type that IDX calls so
_PARTS = ("train", "t10k")


def mnist(data: Mapping[str, Path] | None) -> Images:
    """Read ``--data mnist=DIR``: ``train-images-idx3-ubyte`` and its three companions, each with ``.gz`` or without.

    Returns:
        Pictures (samples, 1, 28, 28) with values from 0 to 1.

    Raises:
        ConfigurationError: A file is missing, or is no IDX file.
    """
    folder = required("mnist", data, "a folder with train-images-idx3-ubyte.gz and its three companions")
    parts, files = [], []
    for part in _PARTS:
        pixels, labels = (_find(folder, f"{part}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        files += [pixels, labels]
        pictures = torch.from_numpy(_read(pixels)).unsqueeze(1).float() / 255
        parts.append(Samples(pictures, torch.from_numpy(_read(labels)).long()))
    names = tuple(str(digit) for digit in range(10))
    train, test = parts
    return Images(train, test, names, from_path("mnist", folder, digest(files)))


def _find(folder: Path, name: str) -> Path:
    for found in (name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz"):
        if (folder / found).exists():
            return folder / found
    raise ConfigurationError(
        f"There is neither {name} nor {name}.gz in {folder}; give the folder that has MNIST's files."
    )


def _read(file: Path) -> NDArray[np.uint8]:
    """Return the array of an IDX file: two zeros, type, number of dimensions, sizes (big-endian), bytes."""
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTES:
        raise ConfigurationError(f"{file} is no IDX file of bytes; give MNIST's files as they are distributed.")
    start = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != int(np.prod(shape)):
        raise ConfigurationError(f"{file} has not the bytes that its sizes {shape} ask for; copy it again.")
    return np.frombuffer(bytearray(content[start:]), dtype=np.uint8).reshape(shape)
