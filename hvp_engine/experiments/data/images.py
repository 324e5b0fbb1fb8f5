"""Pictures that packages carry: scikit-learn's digits, crops of scikit-image's photographs; and generated inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.packages import PACKAGES
from hvp_engine.experiments.data.pixels import normalised
from hvp_engine.experiments.data.samples import Images, Samples, generator_of_data

PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "ihc",
    "moon", "motorcycle_left", "page", "retina", "rocket", "text",
)  # fmt: skip

_DIGITS, _PHOTOGRAPHS = PACKAGES["digits"], PACKAGES["photographs"]
_DIGITS_TEST = 297  # of 1,797
_TRAIN_WIDTH = 0.75  # training crops come from the left of a photograph, test crops from the rest
_SMALLEST, _LARGEST = 48, 128  # pixels of a crop's side


def digits() -> Images:
    """Return the 1,797 handwritten digits of scikit-learn, (1, 8, 8) with values from 0 to 1: 1,500 train, 297 test.

    Raises:
        ConfigurationError: scikit-learn is not installed.
    """
    folder = _DIGITS.folder()
    from sklearn.datasets import load_digits  # noqa: PLC0415  # a second of imports, for those who need it
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 16, labels, test_size=_DIGITS_TEST, stratify=labels, random_state=0)
    train_pixels, test_pixels, train_labels, test_labels = parts
    source = _DIGITS.source("digits", [folder / "datasets" / "data" / "digits.csv.gz"])
    names = tuple(str(digit) for digit in range(10))
    return Images(_digits(train_pixels, train_labels), _digits(test_pixels, test_labels), names, source)


def photographs(size: int = 32, seed: int = 0, train: int = 3400, test: int = 680) -> Images:
    """Crop 17 photographs at random; a crop's class is its photograph.

    Training crops come from the left three quarters of a photograph, test crops from the right quarter, so that they
    share no pixel. Crops have sides of 48 to 128 pixels, less where a photograph is smaller, and are resized. Grey
    photographs get three equal channels.

    Args:
        size: Side of the pictures in pixels.
        seed: Of the crops.
        train: How many training crops; a multiple of 17 makes all classes equal.
        test: How many test crops.

    Returns:
        Pictures (crops, 3, size, size), normalised with ImageNet's mean and standard deviation.

    Raises:
        ConfigurationError: scikit-image is not installed, or lacks a photograph.
    """
    folder = _PHOTOGRAPHS.folder() / "data"
    files = [_photograph(folder, name) for name in PHOTOGRAPHS]
    generator = np.random.default_rng(seed)
    left, right = [], []
    for file in files:
        with Image.open(file) as opened:
            picture = opened.convert("RGB")
        border = round(_TRAIN_WIDTH * picture.width)
        left.append(picture.crop((0, 0, border, picture.height)))
        right.append(picture.crop((border, 0, picture.width, picture.height)))
    source = _PHOTOGRAPHS.source("photographs", files)
    parts = [_crops(pictures, count, size, generator) for pictures, count in ((left, train), (right, test))]
    return Images(parts[0], parts[1], PHOTOGRAPHS, source)


def gaussian(classes: int, features: int, count: int, seed: int, offset: float = 0.0, spread: float = 1.0) -> Samples:
    """Draw Gaussian inputs around Gaussian class means.

    Args:
        classes: How many; their means are standard normal.
        features: Coordinates of an input.
        count: Samples; their classes are drawn uniformly.
        seed: Of means, classes and inputs, which have nothing to do with the weights of a model of this seed.
        offset: Added to every coordinate, as features of a network have a mean.
        spread: Standard deviation of inputs around their mean.

    Returns:
        Inputs (count, features) and classes.
    """
    generator = generator_of_data(seed)
    means = torch.randn(classes, features, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    noise = torch.randn(count, features, generator=generator)
    return Samples(means[labels] + spread * noise + offset, labels)


def _digits(pixels: NDArray[np.float64], labels: NDArray[np.int64]) -> Samples:
    return Samples(torch.from_numpy(pixels).float().view(-1, 1, 8, 8), torch.from_numpy(labels).long())


def _photograph(folder: Path, name: str) -> Path:
    for suffix in (".png", ".jpg", ".tiff", ".gif"):
        if (folder / f"{name}{suffix}").exists():
            return folder / f"{name}{suffix}"
    raise ConfigurationError(
        f"The installed scikit-image lacks the photograph {name!r}; {_PHOTOGRAPHS.install} installs one that has it."
    )


def _crops(pictures: list[Image.Image], count: int, size: int, generator: np.random.Generator) -> Samples:
    labels = np.arange(count) % len(pictures)
    crops = [_crop(pictures[label], size, generator) for label in labels]
    return Samples(normalised(torch.stack(crops)), torch.from_numpy(labels))


def _crop(picture: Image.Image, size: int, generator: np.random.Generator) -> Tensor:
    """Return a random square of a picture, (3, size, size) with values from 0 to 1."""
    most = min(_LARGEST, picture.width, picture.height)
    side = int(generator.integers(min(_SMALLEST, most), most + 1))
    x = int(generator.integers(picture.width - side + 1))
    y = int(generator.integers(picture.height - side + 1))
    resized = picture.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
