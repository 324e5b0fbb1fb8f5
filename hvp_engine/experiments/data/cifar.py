"""CIFAR-10 and CIFAR-100 as they are distributed for Python: pickles, read without running what they may hold."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.pixels import normalised
from hvp_engine.experiments.data.samples import Images, Samples
from hvp_engine.experiments.data.source import digest, from_path, required

_RECONSTRUCT = np.zeros(0).__reduce__()[0]  # what pickles of arrays call; its module has moved between versions
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
_TRAIN_10 = tuple(f"data_batch_{number}" for number in range(1, 6))
_CLASSES = {
    "cifar10": ("batches.meta", b"label_names", b"labels"),
    "cifar100": ("meta", b"fine_label_names", b"fine_labels"),
}


def cifar(name: str, data: Mapping[str, Path] | None) -> Images:
    """Read ``--data cifar10=DIR`` or ``--data cifar100=DIR``, the folder that the archive for Python unpacks to.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``; with 100 classes, the fine ones.
        data: Paths by name.

    Returns:
        Pictures (samples, 3, 32, 32), normalised with ImageNet's mean and standard deviation.

    Raises:
        ConfigurationError: A file is missing, or is no such pickle.
    """
    folder = required(name, data, "the folder that the archive for Python unpacks to")
    about, names, labels = _CLASSES[name]
    train, test = (_TRAIN_10, ("test_batch",)) if name == "cifar10" else (("train",), ("test",))
    for file in (about, *train, *test):
        if not (folder / file).exists():
            raise ConfigurationError(f"There is no {file} in {folder}; give the folder that the archive unpacks to.")
    parts = [_samples([_unpickled(folder / file) for file in files], labels) for files in (train, test)]
    classes = tuple(text.decode() for text in _unpickled(folder / about)[names])
    return Images(
        parts[0], parts[1], classes, from_path(name, folder, digest(folder / file for file in (*train, *test)))
    )


class _Arrays(pickle.Unpickler):
    """Unpickles containers, numbers, text and arrays, and refuses everything that could run."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle calls by name, where that is part of an array."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array.")
        return _ALLOWED[module, name]


def _unpickled(file: Path) -> dict[bytes, Any]:
    try:
        with file.open("rb") as stream:
            content: dict[bytes, Any] = _Arrays(stream, encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ConfigurationError(f"{file} is no file of CIFAR ({error}); copy it again from its archive.") from error
    return content


def _samples(batches: list[dict[bytes, Any]], labels: bytes) -> Samples:
    pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    classes = [label for batch in batches for label in batch[labels]]
    return Samples(normalised(torch.from_numpy(pixels).float() / 255), torch.tensor(classes))
