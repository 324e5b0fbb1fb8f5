"""Pictures that are read from their files as they are drawn: ImageNet, Flowers102 and FGVC-Aircraft as distributed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.pixels import normalised
from hvp_engine.experiments.data.samples import Samples, drawn, shuffled
from hvp_engine.experiments.data.source import Source, from_path, required, sizes_digest

_RESIZED, _CROPPED = 256, 224  # pixels: of the shorter side, of the square in the middle that is kept
_SUFFIXES = {".jpeg", ".jpg", ".png"}


@dataclass(frozen=True)
class PictureFiles:
    """Pictures with one class each, in files.

    Attributes:
        files: The pictures.
        labels: Classes (files,) int64.
    """

    files: tuple[Path, ...]
    labels: Tensor

    def take(self, indices: Tensor) -> Samples:
        """Read pictures by their indices: shorter side 256, the middle 224 x 224, normalised as ImageNet's.

        Returns:
            Pictures (indices, 3, 224, 224) and their classes.
        """
        pictures = torch.stack([_read(self.files[index]) for index in indices.tolist()])
        return Samples(normalised(pictures), self.labels[indices])

    def draw(self, count: int, seed: int) -> Samples:
        """Read pictures drawn at random over all classes, none twice: the same ones for the same seed.

        Raises:
            ConfigurationError: There are too few.
        """
        return self.take(drawn(len(self.files), count, seed))

    def batches(self, count: int, seed: int) -> Iterator[Samples]:
        """Read batches without end, every picture once before any comes again: the same ones for the same seed.

        Raises:
            ConfigurationError: There are too few pictures for one batch.
        """
        for indices in shuffled(len(self.files), count, seed):
            yield self.take(indices)


@dataclass(frozen=True)
class PictureSet:
    """Pictures in files, in two parts.

    Attributes:
        train: Pictures to train on.
        test: Other ones.
        classes: Names of the classes.
        source: Where they come from.
    """

    train: PictureFiles
    test: PictureFiles
    classes: tuple[str, ...]
    source: Source


def imagenet(data: Mapping[str, Path] | None) -> PictureSet:
    """Find the pictures of ``--data imagenet=DIR``: ``train/<class>/*`` and ``val/<class>/*``.

    Raises:
        ConfigurationError: The path is missing, or holds no such folders.
    """
    folder = required("imagenet", data, "a folder with train/<class>/* and val/<class>/*")
    classes = tuple(sorted(path.name for path in (folder / "train").glob("*") if path.is_dir()))
    parts = []
    for part in ("train", "val"):
        found = [(file, label) for label, name in enumerate(classes) for file in _pictures(folder / part / name)]
        parts.append(_labelled(found, folder / part, "<class>/*.JPEG"))
    train, test = parts
    return PictureSet(train, test, classes, _source("imagenet", folder, parts))


def flowers102(data: Mapping[str, Path] | None) -> PictureSet:
    """Find the pictures of ``--data flowers102=DIR``, in torchvision's layout; training and validation are one part.

    Raises:
        ConfigurationError: The path is missing, or holds no such files; SciPy is not installed.
    """
    folder = _inner(required("flowers102", data, "a folder with jpg/, imagelabels.mat and setid.mat"), "flowers-102")
    try:
        from scipy.io import loadmat  # noqa: PLC0415  # of an extra
    except ImportError as error:
        raise ConfigurationError(
            "Flowers102 needs SciPy to read its .mat files; pip install 'hvp-engine[experiments]'."
        ) from error
    _expect(folder, "imagelabels.mat", "setid.mat")
    labels = loadmat(folder / "imagelabels.mat")["labels"].reshape(-1)
    sets = loadmat(folder / "setid.mat")
    parts = []
    for names in (("trnid", "valid"), ("tstid",)):
        numbers = np.concatenate([sets[name].reshape(-1) for name in names]).astype(int).tolist()
        found = [(folder / "jpg" / f"image_{number:05d}.jpg", int(labels[number - 1]) - 1) for number in numbers]
        parts.append(_labelled(found, folder / "jpg", "image_00001.jpg"))
    classes = tuple(str(number + 1) for number in range(int(labels.max())))
    train, test = parts
    return PictureSet(train, test, classes, _source("flowers102", folder, parts))


def aircraft(data: Mapping[str, Path] | None) -> PictureSet:
    """Find the pictures of ``--data aircraft=DIR``: FGVC-Aircraft by variant; training and validation are one part.

    Raises:
        ConfigurationError: The path is missing, or holds no such files.
    """
    given = required("aircraft", data, "a folder with images/, variants.txt and images_variant_train.txt")
    folder = _inner(_inner(given, "fgvc-aircraft-2013b"), "data")
    _expect(folder, "variants.txt", *(f"images_variant_{part}.txt" for part in ("train", "val", "test")))
    classes = tuple((folder / "variants.txt").read_text().splitlines())
    numbers = {name: label for label, name in enumerate(classes)}
    parts = []
    for names in (("train", "val"), ("test",)):
        lines = [line for name in names for line in (folder / f"images_variant_{name}.txt").read_text().splitlines()]
        pairs = [line.split(" ", 1) for line in lines if line]
        found = [(folder / "images" / f"{image}.jpg", numbers[variant]) for image, variant in pairs]
        parts.append(_labelled(found, folder / "images", "0034309.jpg"))
    train, test = parts
    return PictureSet(train, test, classes, _source("aircraft", folder, parts))


def _read(file: Path) -> Tensor:
    """Return the middle of a picture, (3, 224, 224) with values from 0 to 1."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    scale = _RESIZED / min(picture.size)
    width, height = (max(_RESIZED, round(scale * side)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    x, y = (width - _CROPPED) // 2, (height - _CROPPED) // 2
    cropped = np.array(picture.crop((x, y, x + _CROPPED, y + _CROPPED)))
    return torch.from_numpy(cropped).permute(2, 0, 1).float() / 255


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix.lower() in _SUFFIXES)


def _labelled(found: Sequence[tuple[Path, int]], folder: Path, example: str) -> PictureFiles:
    if not found:
        raise ConfigurationError(f"There are no pictures in {folder}; it should hold files such as {example}.")
    return PictureFiles(tuple(file for file, _ in found), torch.tensor([label for _, label in found]))


def _inner(folder: Path, name: str) -> Path:
    """Return the folder that an archive unpacks to, where it is there."""
    return folder / name if (folder / name).is_dir() else folder


def _expect(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).exists():
            raise ConfigurationError(f"There is no {name} in {folder}; give the folder that the archive unpacks to.")


def _source(name: str, folder: Path, parts: Sequence[PictureFiles]) -> Source:
    try:
        return from_path(name, folder, sizes_digest(file for part in parts for file in part.files))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"The picture {error.filename} is listed and not there; unpack the archive again."
        ) from error
