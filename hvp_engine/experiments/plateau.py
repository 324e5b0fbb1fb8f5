"""The plateau that trainings of language models rest on first: knowing how often each token comes, and no more."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from hvp_engine.experiments.entry import Entry
from hvp_engine.losses import IGNORE

OFF_PLATEAU = 0.3  # nats below the entropy of single tokens; above it both optimizers have learnt as little
_BATCHES = 20


def plateau(entry: Entry, seed: int) -> float:
    """Return the entropy in nats of the tokens that the first training batches ask for, each token by itself.

    Args:
        entry: A language model whose batches are token ids, or pairs of inputs and targets.
        seed: Of the data.
    """
    found = [_targets(batch) for batch in islice(entry.data(seed).training(), _BATCHES)]
    counts = torch.bincount(torch.cat(found)).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())


def _targets(batch: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    targets = batch if isinstance(batch, Tensor) else batch[1]
    return targets[targets != IGNORE]
