"""A real byte-level corpus that every machine has: the sources of Python's standard library."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError

_HELD_OUT_EVERY = 10  # every tenth file is held out: whole files, so that no text is shared


@dataclass(frozen=True)
class Corpus:
    """Bytes as token ids, (tokens,) uint8 each.

    Attributes:
        train: Text to train on.
        held_out: Text from other files.
    """

    train: Tensor
    held_out: Tensor

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
                f"The held-out text has {len(self.held_out)} bytes: too few for {count} x {length}."
            )
        starts = torch.linspace(0, last, count, dtype=torch.float64).long()
        return torch.stack([self.held_out[start : start + length] for start in starts.tolist()]).long()

    def batch(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw random training sequences (count, length) int64."""
        starts = torch.randint(0, len(self.train) - length, (count,), generator=generator)
        return torch.stack([self.train[start : start + length] for start in starts.tolist()]).long()


def standard_library() -> Corpus:
    """Read the modules at the top of the standard library, in name order.

    Raises:
        ConfigurationError: This Python comes without sources.
    """
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    train = [path.read_bytes() for i, path in enumerate(files) if i % _HELD_OUT_EVERY]
    held_out = [path.read_bytes() for i, path in enumerate(files) if i % _HELD_OUT_EVERY == 0]
    if not train:
        raise ConfigurationError("This Python has no standard-library sources (*.py) to use as a corpus.")
    return Corpus(*(torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8) for part in (train, held_out)))
