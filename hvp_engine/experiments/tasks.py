"""Batches of a seed from a data set: images to classify, text to continue, text with masked tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.data.masking import masked

Order = Literal["random", "first"]

_APART = 1 << 20  # between the seed of the fixed batches and that of the training's


class Samples(Protocol):
    """Samples with a class each, to be drawn from."""

    def draw(self, count: int, seed: int) -> Any:
        """Draw inputs and labels without replacement."""
        ...

    def batches(self, count: int, seed: int) -> Iterator[Any]:
        """Iterate endlessly over batches of inputs and labels."""
        ...


class Source(Protocol):
    """Where data come from."""

    def described(self) -> dict[str, str]:
        """Say it for a manifest."""
        ...


class ImageSet(Protocol):
    """Images to train on and images to test with."""

    @property
    def source(self) -> Source:
        """Where they come from."""
        ...

    @property
    def train(self) -> Samples:
        """To train on."""
        ...

    @property
    def test(self) -> Samples:
        """To test with."""
        ...


class Text(Protocol):
    """Token ids to train on and token ids held out."""

    @property
    def source(self) -> Source:
        """Where they come from."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        ...

    def batch(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw random sequences."""
        ...

    def batches(self, count: int, length: int, seed: int) -> Iterator[Tensor]:
        """Iterate endlessly over random sequences."""
        ...

    def sequences(self, count: int, length: int) -> Tensor:
        """Take held-out sequences."""
        ...

    def first(self, count: int, length: int) -> Tensor:
        """Take the first sequences to train on."""
        ...


@dataclass(frozen=True)
class Amounts:
    """How much of a data set each purpose gets, in samples or sequences.

    Attributes:
        fixed: Where the Hessian is taken.
        microbatch: Of these at once.
        training: In a training batch.
        held_out: To judge by.
        length: Tokens of a sequence; 0 for images.
        order: ``"random"``, or ``"first"`` for the first contiguous tokens, as the released code takes them.
        trained_length: Tokens of a training sequence; 0 takes ``length``.
    """

    fixed: int
    microbatch: int
    training: int
    held_out: int
    length: int = 0
    order: Order = "random"
    trained_length: int = 0


def on_images(images: ImageSet, amounts: Amounts, seed: int) -> Batches:
    """Make batches (inputs, classes) of images to classify."""

    def training() -> Iterator[Any]:
        yield from images.train.batches(amounts.training, seed)

    inputs, labels = images.train.draw(amounts.fixed, seed + _APART)
    fixed = list(zip(inputs.split(amounts.microbatch), labels.split(amounts.microbatch), strict=True))
    tested, classes = images.test.draw(amounts.held_out, seed + _APART)
    held_out = list(zip(tested.split(amounts.microbatch), classes.split(amounts.microbatch), strict=True))
    return Batches(fixed, training, held_out, images.source.described())


def on_text(text: Text, amounts: Amounts, seed: int) -> Batches:
    """Make batches of token ids (n, length), each of which predicts the next."""
    length = amounts.trained_length or amounts.length
    return Batches(
        list(torch.split(_fixed(text, amounts, seed), amounts.microbatch)),
        partial(text.batches, amounts.training, length, seed),
        list(torch.split(text.sequences(amounts.held_out, amounts.length), amounts.microbatch)),
        text.source.described(),
    )


def on_masked_text(text: Text, amounts: Amounts, share: float, trained_share: float, seed: int) -> Batches:
    """Make batches (inputs, targets) of text with masked tokens; the mask's id is the vocabulary's size.

    Args:
        text: The text.
        amounts: How much of it.
        share: Of tokens to predict, in fixed and held-out batches.
        trained_share: Of tokens to predict in training batches.
        seed: Of everything that is drawn.
    """

    def hidden(tokens: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return masked(tokens, share, text.vocabulary, text.vocabulary, generator)

    def training() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for tokens in plain.training():
            yield hidden(tokens, trained_share, generator)

    plain = on_text(text, amounts, seed)
    generator = torch.Generator().manual_seed(seed + _APART)
    fixed = [hidden(tokens, share, generator) for tokens in plain.fixed]
    held_out = [hidden(tokens, share, generator) for tokens in plain.held_out]
    return Batches(fixed, training, held_out, plain.source)


def _fixed(text: Text, amounts: Amounts, seed: int) -> Tensor:
    if amounts.order == "first":
        return text.first(amounts.fixed, amounts.length)
    return text.batch(amounts.fixed, amounts.length, torch.Generator().manual_seed(seed + _APART))
