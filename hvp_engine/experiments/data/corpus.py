"""Token ids of a text, in two parts; and a text that every machine has, the sources of Python's standard library."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.source import Source, digest
from hvp_engine.system.versions import versions

HELD_OUT_EVERY = 10  # every tenth file is held out: whole files, so that no text is shared
BYTES = 256


@dataclass(frozen=True)
class Corpus:
    """A text as token ids, (tokens,) each, of any integer dtype.

    Attributes:
        train: Text to train on.
        held_out: Text from elsewhere.
        source: Where it comes from.
        vocabulary: How many ids there may be.
        symbols: The character of each id; empty where ids are no characters.
    """

    train: Tensor
    held_out: Tensor
    source: Source
    vocabulary: int = BYTES
    symbols: str = ""

    def sequences(self, count: int, length: int) -> Tensor:
        """Take evenly spaced held-out sequences.

        Args:
            count: How many.
            length: Tokens in each.

        Returns:
            Token ids (count, length) int64.

        Raises:
            ConfigurationError: The held-out text is too short.
        """
        last = len(self.held_out) - length
        if last < count:
            raise ConfigurationError(
                f"The held-out text has {len(self.held_out)} tokens: too few for {count} x {length}; give a longer one."
            )
        starts = torch.linspace(0, last, count, dtype=torch.float64).long()
        return _rows(self.held_out, starts, length)

    def batch(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw random training sequences (count, length) int64.

        Raises:
            ConfigurationError: The text is shorter than one sequence.
        """
        last = len(self.train) - length
        if last < 1:
            raise ConfigurationError(
                f"The text has {len(self.train)} tokens: too few for sequences of {length}; give a longer one."
            )
        return _rows(self.train, torch.randint(0, last, (count,), generator=generator), length)

    def batches(self, count: int, length: int, seed: int) -> Iterator[Tensor]:
        """Draw random training sequences without end: the same ones for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.batch(count, length, generator)

    def first(self, count: int, length: int) -> Tensor:
        """Take the first ``count * length`` training tokens, cut into sequences (count, length) int64.

        Raises:
            ConfigurationError: The text is too short.
        """
        if len(self.train) < count * length:
            raise ConfigurationError(
                f"The text has {len(self.train)} tokens: too few for {count} x {length}; give a longer one."
            )
        return self.train[: count * length].long().view(count, length)


def _rows(tokens: Tensor, starts: Tensor, length: int) -> Tensor:
    return torch.stack([tokens[start : start + length].long() for start in starts.tolist()])


def byte_ids(text: bytes) -> Tensor:
    """Return bytes as token ids (bytes,) uint8."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)


def split_files(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Hold out every tenth file, the first one among them."""
    train = [file for i, file in enumerate(files) if i % HELD_OUT_EVERY]
    return train, [file for i, file in enumerate(files) if i % HELD_OUT_EVERY == 0]


def standard_library() -> Corpus:
    """Read the modules at the top of the standard library, in name order, as bytes.

    Raises:
        ConfigurationError: This Python comes without sources.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    train, held_out = (b"".join(file.read_bytes() for file in part) for part in split_files(files))
    if not train:
        raise ConfigurationError("This Python has no standard-library sources (*.py) to use as a corpus.")
    source = Source("stdlib", "PSF-2.0", f"Python {versions()['python']}", digest(files))
    return Corpus(byte_ids(train), byte_ids(held_out), source)
