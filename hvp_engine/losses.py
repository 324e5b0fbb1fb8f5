"""Ready losses that return ``(total, weight)``, so that ragged batches and ignored tokens are averaged right.

Each is a function of ``(model, batch)`` for the ``loss`` argument of :func:`hvp_engine.slq` and :func:`hvp_engine.hvp`.
The model may return logits, a tuple whose first entry is the logits, or a Hugging Face output with ``.logits``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvp_engine.errors import ObjectiveError

IGNORE = -100  # the label that cross-entropy leaves out, in PyTorch and Hugging Face alike


def causal_lm(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Compute next-token cross-entropy summed over tokens, and the number of tokens it was summed over.

    Args:
        model: Maps token ids (batch, tokens) to logits (batch, tokens, vocabulary).
        batch: Token ids (batch, tokens), each predicting the next; or ``(inputs, targets)`` already aligned; or a
            mapping with ``input_ids`` and optionally ``attention_mask`` and ``labels`` (shifted here, -100 ignored).

    Returns:
        Scalar total and scalar weight (the count of targets that are not -100).
    """
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        labels = batch.get("labels")
        if labels is None:
            labels = inputs["input_ids"]
            if "attention_mask" in inputs:
                labels = labels.masked_fill(inputs["attention_mask"] == 0, IGNORE)
        return _summed(_logits(model(**inputs))[:, :-1], labels[:, 1:])
    if isinstance(batch, Tensor):
        return _summed(_logits(model(batch))[:, :-1], batch[:, 1:])
    tokens, targets = _pair(batch, "causal_lm")
    return _summed(_logits(model(tokens)), targets)


def masked_lm(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Compute masked-token cross-entropy: targets of -100 are not predicted and do not count.

    Args:
        model: Maps token ids (batch, tokens) to logits (batch, tokens, vocabulary).
        batch: ``(inputs, targets)``, or a mapping with ``labels`` whose other entries are the model's arguments.

    Returns:
        Scalar total and scalar weight (the count of targets that are not -100).
    """
    return _aligned(model, batch, "masked_lm")


def classification(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Compute cross-entropy over classes, summed over samples, and the number of samples.

    Args:
        model: Maps inputs to logits (batch, classes).
        batch: ``(inputs, targets)``, or a mapping with ``labels`` whose other entries are the model's arguments.

    Returns:
        Scalar total and scalar weight (the count of targets that are not -100).
    """
    return _aligned(model, batch, "classification")


def _aligned(model: nn.Module, batch: Any, loss: str) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise ObjectiveError(f"losses.{loss} needs a 'labels' entry in the batch; found {sorted(batch)}.")
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return _summed(_logits(model(**inputs)), batch["labels"])
    inputs, targets = _pair(batch, loss)
    return _summed(_logits(model(inputs)), targets)


def _pair(batch: Any, loss: str) -> tuple[Any, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise ObjectiveError(
        f"losses.{loss} takes (inputs, targets) pairs or mappings, not {type(batch).__name__}; "
        "write a loss(model, batch) of your own for other batches."
    )


def _logits(output: Any) -> Tensor:
    """Find the logits in whatever a model returns, in at least float32."""
    if hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)):
        output = output[0]
    logits: Tensor = output
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _summed(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    total = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORE, reduction="sum"
    )
    return total, (targets != IGNORE).sum()
