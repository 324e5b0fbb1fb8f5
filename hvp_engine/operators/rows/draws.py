"""Targets drawn from a model's own predictions, by numbers that depend on the seed and on a row's place alone.

Numbers come from a counter-based generator (Philox, as the probes' in :mod:`hvp_engine.krylov.probes`): the one of a
batch's row is the same however the batch is cut, on every device, and whatever was drawn before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_PER_COUNT = 4  # 64-bit numbers that the generator gives for each count
_CHUNK = 1 << 22  # probabilities held at once


@dataclass(frozen=True)
class Place:
    """Where the rows of a micro-batch stand.

    Attributes:
        seed: Seed of the job.
        batch: Number of the batch.
        start: First sample of the micro-batch in it.
        samples: Samples of the micro-batch; None where it cannot be cut.
    """

    seed: int
    batch: int
    start: int
    samples: int | None

    def uniforms(self, call: int, rows: int) -> Tensor:
        """Return numbers in (0, 1), one per row, (rows,) float64 on the CPU.

        Args:
            call: Which of the batch's losses they are for.
            rows: How many; as many for each sample, in the order of the samples.
        """
        digest = hashlib.blake2b(f"{self.seed}\0{self.batch}\0{call}".encode(), digest_size=16, person=b"targets")
        bits = np.random.Philox(key=np.frombuffer(digest.digest(), dtype=np.uint64))
        first = self.start * (rows // self.samples) if self.samples else 0
        bits.advance(first // _PER_COUNT)
        before = first % _PER_COUNT
        drawn = np.random.Generator(bits).random(before + rows)[before:]
        return torch.from_numpy(drawn + 2.0**-54)


def draw_classes(logits: Callable[[int, int], Tensor], classes: int, uniforms: Tensor) -> Tensor:
    """Draw a class for every row from the softmax of its logits.

    Args:
        logits: Gives those of rows ``first`` to ``last``, (rows, classes).
        classes: How many there are.
        uniforms: A number in (0, 1) per row, (rows,).

    Returns:
        int64 (rows,), on the device of the logits.
    """
    rows, step = len(uniforms), max(1, _CHUNK // max(classes, 1))
    drawn: list[Tensor] = []
    for first in range(0, rows, step):
        chunk = logits(first, min(first + step, rows)).double()
        sums = (chunk - chunk.amax(1, keepdim=True)).exp_().cumsum(1)
        wanted = uniforms[first : first + step, None].to(chunk.device) * sums[:, -1:]
        drawn.append(torch.searchsorted(sums, wanted, right=True).clamp_(max=classes - 1).squeeze(1))
    return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.int64)


def draw_normals(uniforms: Tensor, like: Tensor) -> Tensor:
    """Return standard normal numbers in the shape of a tensor, in its dtype, on its device."""
    normals: Tensor = torch.special.ndtri(uniforms)
    return normals.reshape(like.shape).to(like.device, like.dtype)
