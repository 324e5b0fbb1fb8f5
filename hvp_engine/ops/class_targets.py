"""Class-index targets of a cross-entropy: their options, checks, and how row losses are reduced."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.kernels.records import CrossEntropyRows

__all__ = ["ClassTargets", "check_options", "check_targets", "reduce_rows"]


@dataclass(frozen=True)
class ClassTargets:
    """Options that go with class-index targets.

    Attributes:
        ignore_index: Target value whose rows have neither loss nor gradient.
        label_smoothing: Share of the target distribution spread evenly over the classes.
    """

    ignore_index: int
    label_smoothing: float

    def rows(
        self, logits: Tensor, target: Tensor, class_weight: Tensor | None, rows: int | None = None
    ) -> CrossEntropyRows:
        """Describe contiguous logits (R, C), int64 targets (R) and weights (C) to the kernels.

        Args:
            logits: Logits; row r of an output reads row r % R.
            target: Class indices.
            class_weight: Weights in the accumulator type, or None.
            rows: Rows of the outputs, R unless told.
        """
        count = logits.shape[0] if rows is None else rows
        return CrossEntropyRows(logits, target, class_weight, count, self.ignore_index, self.label_smoothing)

    def hit(self, target: Tensor, class_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the factor (R) of each row's own class, zero if ignored, and that class (R), then 0."""
        kept = target != self.ignore_index
        index = target.where(kept, 0)
        factor = kept if class_weight is None else class_weight[index].where(kept, 0)
        return (1.0 - self.label_smoothing) * factor, index

    def mass(self, target: Tensor, class_weight: Tensor | None, classes: int) -> Tensor:
        """Return the factor (R) of the softmax in each row's gradient: 1 unless weighted or ignored."""
        kept = target != self.ignore_index
        if class_weight is None:
            return kept
        spread = self.label_smoothing / classes * class_weight.sum()
        return (self.hit(target, class_weight)[0] + spread).where(kept, 0)

    def check(self, target: Tensor, classes: int) -> None:
        """Raise ConfigurationError for the first target that is neither a class nor `ignore_index`."""
        valid = (target >= 0) & (target < classes) | (target == self.ignore_index)
        if not bool(valid.all()):
            row = int((~valid).nonzero()[0, 0])
            raise ConfigurationError(
                f"target {int(target[row])} (flattened position {row}) is not a class: the logits have "
                f"{classes} classes and ignore_index is {self.ignore_index}. Use targets from 0 to "
                f"{classes - 1}, or pass the value that marks ignored positions as ignore_index."
            )


def _sum(values: Tensor) -> Tensor:
    """Sum a vector in float64, in an order that does not depend on the number of threads.

    PyTorch splits one long sum among its threads; many sums of fixed length it does not split.
    """
    length = 4096
    values = values.double()
    if values.shape[0] <= length:
        return values.sum()
    return _sum(F.pad(values, (0, -values.shape[0] % length)).view(-1, length).sum(1))


def reduce_rows(
    loss: Tensor, target: Tensor, class_weight: Tensor | None, options: ClassTargets, reduction: str
) -> Tensor:
    """Reduce row losses as `F.cross_entropy` does: the mean is weighted by the classes of the kept targets.

    Args:
        loss: Losses (R).
        target: Class indices (R).
        class_weight: Weights (C) or None.
        options: `ignore_index` is used.
        reduction: "none", "sum" or "mean".
    """
    if reduction == "none":
        return loss
    if reduction == "sum":
        return _sum(loss).to(loss.dtype)
    kept = target != options.ignore_index
    if class_weight is None:
        return (_sum(loss) / kept.sum()).to(loss.dtype)
    weights = class_weight[target.where(kept, 0)].where(kept, 0)
    return (_sum(loss) / _sum(weights)).to(loss.dtype)


def check_options(reduction: str, label_smoothing: float, class_weight: Tensor | None, classes: int) -> None:
    """Raise ConfigurationError for options that `F.cross_entropy` would refuse too."""
    if reduction not in ("none", "sum", "mean"):
        raise ConfigurationError(f"reduction is {reduction!r}; use 'none', 'sum' or 'mean'.")
    if not (0.0 <= label_smoothing <= 1.0) or math.isnan(label_smoothing):
        raise ConfigurationError(f"label_smoothing is {label_smoothing}; it must lie between 0.0 and 1.0.")
    if class_weight is None:
        return
    if class_weight.shape != (classes,):
        raise ConfigurationError(
            f"The class weights have shape {tuple(class_weight.shape)}; one weight for each of the "
            f"{classes} classes is needed, shape ({classes},)."
        )
    if class_weight.requires_grad:
        raise ConfigurationError("Cross-entropy has no derivative wrt class weights; pass weight.detach().")


def check_targets(target: Tensor, expected: torch.Size) -> None:
    """Raise ConfigurationError unless target holds integers in the expected shape."""
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ConfigurationError(f"Class-index targets must be integers, not {target.dtype}; use target.long().")
    if target.shape != expected:
        raise ConfigurationError(
            f"The targets have shape {tuple(target.shape)}, but the logits ask for "
            f"{tuple(expected)}: all dimensions "
            "except that of the classes."
        )
