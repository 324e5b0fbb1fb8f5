"""One training loop for all models, and the search for the learning rate that suits an optimizer best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from hvp_engine.experiments.optimizers import Schedule
from hvp_engine.problem.objective import Loss

FloatArray = NDArray[np.float64]

_DIVERGED = 3.0  # a loss of this many times the first one does not come back
_LAST_SHARE = 0.1  # of the steps, for the loss that a training is judged by
_MOST_EXTENSIONS = 2


@dataclass(frozen=True)
class Curve:
    """What a training went through.

    Attributes:
        losses: Training loss of every step, before the step (steps,); infinite from where it diverged.
        gradient_norms: Norm of the whole gradient before clipping (steps,); nan from where it diverged.
        held_out: Loss on held-out data at the end; nan where it was not measured.
        accuracy: Share of held-out samples classified right at the end; nan where nothing is classified.
        rate: The learning rate.
        at_edge: Whether the rate is the end of a grid that was not extended further.
    """

    losses: FloatArray
    gradient_norms: FloatArray
    held_out: float = math.nan
    accuracy: float = math.nan
    rate: float = math.nan
    at_edge: bool = False

    @property
    def final(self) -> float:
        """Mean loss of the last tenth of the steps; infinite where the training diverged."""
        return float(self.losses[-_window(len(self.losses)) :].mean())


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Iterator[Any],
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    steps: int,
    clip: float | None = None,
    microbatches: int = 1,
    after: Callable[[int], None] | None = None,
) -> Curve:
    """Train a model in place; stop at the first loss that is not finite, or three times the first one.

    Args:
        model: The model; it is in training mode while it trains, and left so.
        loss: As for :func:`hvp_engine.slq`.
        batches: At least ``steps * microbatches`` of them.
        optimizer: Of the model's parameters.
        schedule: Makes the learning-rate schedule of the optimizer.
        steps: Steps to take.
        clip: Largest norm of the whole gradient; None does not clip.
        microbatches: Batches whose mean gradient makes a step.
        after: Called after every step with the number of steps taken.

    Returns:
        The curve, with ``steps`` entries however the training ended.
    """
    scheduler = schedule(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    losses = np.full(steps, np.inf)
    norms = np.full(steps, np.nan)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        found = sum(_backward(loss, model, next(batches), microbatches) for _ in range(microbatches))
        if not math.isfinite(found) or found > _DIVERGED * losses[0]:
            break
        norms[step] = float(_clipped(parameters, clip))
        losses[step] = found
        optimizer.step()
        scheduler.step()
        if after is not None:
            after(step + 1)
    return Curve(losses, norms, rate=float(optimizer.defaults["lr"]))


def _backward(loss: Loss, model: nn.Module, batch: Any, share: int) -> float:
    """Add the gradient of a batch's mean loss over ``share``; return that loss over ``share``."""
    value = mean_loss(loss, model, batch) / share
    value.backward()  # type: ignore[no-untyped-call]
    return float(value.detach())


def mean_loss(loss: Loss, model: nn.Module, batch: Any) -> Tensor:
    """Compute the mean loss of a batch, a scalar, of whatever a loss returns."""
    value = loss(model, batch)
    if isinstance(value, tuple):
        total, weight = value
        return torch.as_tensor(total / weight)
    return torch.as_tensor(value)


def speed_up(slow: Curve, fast: Curve) -> float:
    """Return by how many times fewer steps one training reaches the final loss of another; 0 if it never does.

    Losses are means over as many steps as the final loss is a mean of.
    """
    steps = len(fast.losses)
    window = _window(steps)
    means = np.convolve(fast.losses, np.full(window, 1 / window), mode="valid")
    reached = np.flatnonzero(means <= slow.final)
    return len(slow.losses) / float(reached[0] + window) if len(reached) else 0.0


@torch.no_grad()
def held_out(model: nn.Module, loss: Loss, batches: Sequence[Any]) -> float:
    """Compute the mean loss over batches in eval mode, every sample or token weighing the same."""
    training = model.training
    model.eval()
    total, weight = 0.0, 0.0
    for batch in batches:
        value = loss(model, batch)
        part, share = value if isinstance(value, tuple) else (value, 1.0)
        total, weight = total + float(part), weight + float(share)
    model.train(training)
    return total / weight


@torch.no_grad()
def accuracy(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the share of samples whose class has the largest logit, in eval mode.

    Args:
        model: Maps inputs to logits (samples, classes), or to an output of transformers that has them.
        batches: Inputs and classes.
    """
    training = model.training
    model.eval()
    right = count = 0
    for inputs, labels in batches:
        output = model(inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        right, count = right + int((logits.argmax(1) == labels).sum()), count + len(labels)
    model.train(training)
    return right / count


def search(
    train: Callable[[float], Curve], rates: Sequence[float], extensions: int = _MOST_EXTENSIONS
) -> tuple[Curve, dict[float, Curve]]:
    """Train with every rate of a grid; a best one at the edge extends the grid by one on that side, at most twice.

    Args:
        train: Trains with a rate.
        rates: The grid.
        extensions: How often it may be extended.

    Returns:
        The curve with the smallest final loss, marked where it stayed at the edge, and all curves by rate in falling
        order.
    """
    grid = sorted(rates, reverse=True)
    curves = {rate: train(rate) for rate in grid}
    for _ in range(extensions):
        best = _best(curves)
        if best not in (grid[0], grid[-1]) or len(grid) == 1:
            break
        further = _beyond(grid, best)
        curves[further] = train(further)
        grid = sorted(curves, reverse=True)
    best = _best(curves)
    at_edge = len(grid) > 1 and best in (grid[0], grid[-1])
    return replace(curves[best], at_edge=at_edge), {rate: curves[rate] for rate in grid}


def _window(steps: int) -> int:
    """Return the number of steps that a loss is averaged over."""
    return max(1, round(_LAST_SHARE * steps))


def _best(curves: dict[float, Curve]) -> float:
    """Return the rate of the smallest final loss; the smallest rate where every training diverged."""
    return min(sorted(curves), key=lambda rate: curves[rate].final)


def _beyond(grid: list[float], edge: float) -> float:
    """Return the rate one step outside a falling grid, on the side of ``edge``, as far as its neighbour is inside."""
    neighbour = grid[1] if edge == grid[0] else grid[-2]
    return float(f"{edge * edge / neighbour:.3g}")


def _clipped(parameters: list[Tensor], clip: float | None) -> Tensor:
    """Clip the whole gradient where that is asked for; return its norm before that."""
    if clip is not None:
        return torch.nn.utils.clip_grad_norm_(parameters, clip)
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
