"""The plateau that trainings of language models rest on first: knowing how often each token comes, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from hvp_engine.experiments.entry import Entry
from hvp_engine.losses import IGNORE

OFF_PLATEAU = 0.3  # nats below the entropy of single tokens; above it both optimizers have learnt as little
_BATCHES = 20
_ANSWERS = "next_sentence_label"


def plateau(entry: Entry, seed: int) -> float:
    """Return the entropy in nats of the tokens that the first training batches ask for, each token by itself.

    Where a batch also asks whether a sentence follows another one, as BERT's pre-training does, the loss adds what that
    costs to it, and so does this: the entropy of the answers.

    Args:
        entry: A language model whose batches are token ids, pairs of inputs and targets, or what Hugging Face's models
            take: mappings with ``labels``, and perhaps ``next_sentence_label``.
        seed: Of the data.
    """
    batches = list(islice(entry.data(seed).training(), _BATCHES))
    answers = [batch[_ANSWERS] for batch in batches if isinstance(batch, Mapping) and _ANSWERS in batch]
    return _entropy([_targets(batch) for batch in batches]) + (_entropy(answers) if answers else 0.0)


def _targets(batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        batch = batch["labels"]
    targets: Tensor = batch if isinstance(batch, Tensor) else batch[1]
    return targets[targets != IGNORE]


def _entropy(symbols: Sequence[Tensor]) -> float:
    """Return the entropy of how often each symbol comes, in nats."""
    counts = torch.bincount(torch.cat(list(symbols))).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())
