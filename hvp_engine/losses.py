"""Ready losses that return ``(total, weight)``, so that ragged batches and ignored tokens are averaged right.

Each is a function of ``(model, batch)`` for the ``loss`` argument of :func:`hvp_engine.slq` and :func:`hvp_engine.hvp`.
The model may return logits, a tuple whose first entry is the logits, or a Hugging Face output with ``.logits``. Targets
may be tensors, arrays or lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvp_engine.errors import ObjectiveError

__all__ = ["causal_lm", "classification", "masked_lm", "seq2seq_lm"]

IGNORE = -100  # the label that cross-entropy leaves out, in PyTorch and Hugging Face alike


def causal_lm(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Compute next-token cross-entropy summed over tokens, and the number of tokens it was summed over.

    Args:
        model: Maps token ids (batch, tokens) to logits (batch, tokens, vocabulary).
        batch: Token ids (batch, tokens), each predicting the next; or ``(inputs, targets)`` already aligned; or a
            mapping with ``input_ids`` and optionally ``attention_mask`` and ``labels`` (shifted here, -100 ignored).
            Nothing is predicted from a position that ``attention_mask`` (batch, tokens) hides, so that padding may be
            on either side.

    Returns:
        Scalar total and scalar weight (the count of targets that are not -100).

    Raises:
        ObjectiveError: The batch has no targets, or they do not fit the logits.
    """
    if isinstance(batch, Mapping):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        targets = _next_tokens(batch)
        return _summed(_logits(model(**inputs))[:, :-1], targets)
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

    Raises:
        ObjectiveError: The batch has no targets, or they do not fit the logits.
    """
    logits, targets = _logits_and_targets(model, batch, "masked_lm")
    return _summed(logits, targets)


def seq2seq_lm(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of an encoder-decoder model's target tokens, and the number of these.

    Args:
        model: A Hugging Face encoder-decoder model, or any with its arguments: logits (batch, tokens, vocabulary) of
            the labels. It makes the decoder's inputs of the labels, unless the batch has ``decoder_input_ids``.
        batch: A mapping with ``labels`` (batch, tokens), -100 ignored; its other entries are the model's arguments.

    Returns:
        Scalar total and scalar weight (the count of labels that are not -100).

    Raises:
        ObjectiveError: The batch is no mapping with labels, or these do not fit the logits.
    """
    if not isinstance(batch, Mapping):
        raise ObjectiveError(
            f"losses.seq2seq_lm takes mappings with input_ids and labels, not {type(batch).__name__}; write a "
            "loss(model, batch) of your own for other batches."
        )
    inputs, labels = _labelled(batch, "seq2seq_lm")
    if "decoder_input_ids" not in inputs and "decoder_inputs_embeds" not in inputs:
        shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        # The model would compute a loss of its own from labels: it gets them where it cannot be asked for their shift.
        inputs |= {"labels": labels} if shift is None else {"decoder_input_ids": shift(labels=labels)}
    return _summed(_logits(model(**inputs)), labels)


def classification(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Compute cross-entropy over classes, summed over what is classified, and the number of that.

    Args:
        model: Maps inputs to logits (batch, classes), or (batch, classes, d1, ...) where every pixel is classified, as
            `torch.nn.functional.cross_entropy` has them. Logits (batch, d1, ..., classes) are recognised by their
            targets where these fit no other reading.
        batch: ``(inputs, targets)``, or a mapping with ``labels`` whose other entries are the model's arguments.
            Targets are class indices (batch, d1, ...), or for logits (batch, classes) probabilities of that shape.

    Returns:
        Scalar total and scalar weight (the count of targets that are not -100).

    Raises:
        ObjectiveError: The batch has no targets, or they do not fit the logits, or do so in two ways.
    """
    logits, targets = _logits_and_targets(model, batch, "classification")
    shape, given = tuple(logits.shape), tuple(targets.shape)
    if targets.is_floating_point():
        return _of_probabilities(logits, targets)
    _check_classes(shape[1] if len(shape) > 1 and given == (shape[0], *shape[2:]) else shape[-1])
    if len(shape) == 2 and given == (shape[0], 1):
        return _summed(logits, targets[:, 0])
    classes_last = given == shape[:-1]
    if len(shape) < 3 or given != (shape[0], *shape[2:]):
        if not classes_last:
            raise _misfit(shape, given, "one class index for every row of logits")
        return _summed(logits, targets)
    if classes_last:
        raise ObjectiveError(
            f"losses.classification cannot tell whether logits {shape} with targets {given} have their classes in "
            "dimension 1 or last; use losses.masked_lm for classes that are last, or a loss(model, batch) that returns "
            'F.cross_entropy(logits, targets, reduction="sum"), targets.numel() for dimension 1.'
        )
    total = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return total, (targets != IGNORE).sum()


COUNTED = (causal_lm, masked_lm, seq2seq_lm, classification)  # their weights count what their totals sum over


def _of_probabilities(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    shape = tuple(logits.shape)
    if len(shape) != 2 or tuple(targets.shape) != shape:
        raise _misfit(shape, tuple(targets.shape), "class indices, or probabilities (batch, classes)")
    _check_classes(shape[1])
    total = F.cross_entropy(logits, targets.to(logits.dtype), reduction="sum")
    return total, torch.tensor(shape[0], device="cpu")


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise ObjectiveError(
            "losses.classification got logits of one class, whose cross-entropy is zero; write a loss(model, batch) "
            "with F.binary_cross_entropy_with_logits for two classes, or F.mse_loss for numbers."
        )


def _misfit(logits: tuple[int, ...], targets: tuple[int, ...], wanted: str) -> ObjectiveError:
    hint = "; of one-hot targets pass .argmax(1), or .float()" if logits == targets else ""
    return ObjectiveError(
        f"losses.classification needs {wanted}; the logits are {logits}, the targets {targets}{hint}."
    )


def _next_tokens(batch: Mapping[Any, Any]) -> Tensor:
    """Return the label that each position but the last predicts (batch, tokens - 1)."""
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    if labels is None:
        labels = batch.get("input_ids")
        if labels is None:
            raise ObjectiveError(f"losses.causal_lm needs 'input_ids' or 'labels' in the batch; found {sorted(batch)}.")
        if mask is not None and mask.shape != labels.shape:
            raise ObjectiveError(
                f"losses.causal_lm reads from an attention_mask of shape {tuple(labels.shape)} which tokens are "
                f"padding, not from {tuple(mask.shape)}; put 'labels' into the batch, -100 where nothing is predicted."
            )
        labels = labels if mask is None else labels.masked_fill(mask == 0, IGNORE)
    labels = torch.as_tensor(labels)
    targets = labels[:, 1:]
    if mask is not None and mask.shape == labels.shape:
        targets = targets.masked_fill(mask[:, :-1].to(targets.device) == 0, IGNORE)
    return targets


def _logits_and_targets(model: nn.Module, batch: Any, loss: str) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        inputs, targets = _labelled(batch, loss)
        logits = _logits(model(**inputs))
    else:
        inputs, targets = _pair(batch, loss)
        logits = _logits(model(inputs))
    targets = torch.as_tensor(targets).to(logits.device)
    return logits, targets if targets.is_floating_point() else targets.long()


def _labelled(batch: Mapping[Any, Any], loss: str) -> tuple[dict[Any, Any], Any]:
    if "labels" not in batch:
        raise ObjectiveError(f"losses.{loss} needs a 'labels' entry in the batch; found {sorted(batch)}.")
    return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]


def _pair(batch: Any, loss: str) -> tuple[Any, Any]:
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


def _summed(logits: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of logits (..., classes) over targets (...) that are not ignored, and count these."""
    targets = torch.as_tensor(targets).to(logits.device)
    shape, rows = tuple(logits.shape), tuple(targets.shape)
    flattened = len(shape) == 2 and shape[0] == targets.numel()
    if targets.is_floating_point() or not (rows == shape[:-1] or flattened):
        raise ObjectiveError(
            f"The logits {shape} need one class index for each of {shape[:-1]}, classes last; the targets are "
            f"{rows}, {targets.dtype}."
        )
    total = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long(), ignore_index=IGNORE, reduction="sum"
    )
    return total, (targets != IGNORE).sum()


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
