"""What SGD loses against Adam on a model: both at their best learning rates, after the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from hvp_engine.experiments import cache, figures
from hvp_engine.experiments.blockwise import mean_and_deviation
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Cell
from hvp_engine.experiments.training import Curve, speed_up

COLUMNS = (
    "model", "SGD's rate", "SGD's loss", "sd", "Adam's rate", "Adam's loss", "sd", "gap", "speed-up",
    "held-out loss, SGD", "held-out loss, Adam", "held-out accuracy, SGD", "held-out accuracy, Adam",
)  # fmt: skip
_FAILED = 0.5  # of the search's fall in loss: a seed whose loss fell by less did not train
_POINTS = 60  # of a drawn curve, each the mean of as many steps


@dataclass(frozen=True)
class Gap:
    """The final runs of both optimizers.

    Attributes:
        name: Of the model.
        sgd: Curves by seed.
        adam: Likewise.
    """

    name: str
    sgd: tuple[Curve, ...]
    adam: tuple[Curve, ...]

    @property
    def losses(self) -> tuple[float, float]:
        """Mean over seeds of the final training losses of SGD and Adam."""
        return float(np.mean([curve.final for curve in self.sgd])), float(np.mean([curve.final for curve in self.adam]))

    @property
    def values(self) -> tuple[float, ...]:
        """Final loss of SGD minus that of Adam, by seed."""
        return tuple(s.final - a.final for s, a in zip(self.sgd, self.adam, strict=True))

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return float(np.mean(self.values))

    @property
    def summary(self) -> tuple[float, float]:
        """Mean and standard deviation of the values."""
        return mean_and_deviation(self.values)

    @property
    def relative(self) -> float:
        """Mean of the values as a share of Adam's mean loss, which makes tasks a little more comparable."""
        return self.mean / self.losses[1]

    @property
    def speed_ups(self) -> list[float]:
        """How many times sooner Adam reaches SGD's final loss, by seed."""
        return [speed_up(slow, fast) for slow, fast in zip(self.sgd, self.adam, strict=True)]

    @property
    def medians(self) -> tuple[Cell, ...]:
        """What a table says of it, in the order of :data:`COLUMNS`: medians over seeds."""
        both: list[Cell] = []
        for curves in (self.sgd, self.adam):
            finals = [curve.final for curve in curves]
            rate = f"{curves[0].rate:g}{' (edge)' if curves[0].at_edge else ''}"
            both += [rate, median(finals), float(np.std(finals, ddof=1)) if len(finals) > 1 else float("nan")]
        held_out = [median([c.held_out for c in curves]) for curves in (self.sgd, self.adam)]
        accuracy = [median([c.accuracy for c in curves]) for curves in (self.sgd, self.adam)]
        return (self.name, *both, median(self.values), median(self.speed_ups), *held_out, *accuracy)

    @property
    def edges(self) -> tuple[str, ...]:
        """What speaks against the rates: a sentence for each that is the end of its grid, or fails with other seeds."""
        both = {"SGD": self.sgd, "Adam": self.adam}
        ends = tuple(
            f"The best learning rate of {optimizer} for {self.name}, {curves[0].rate:g}, is the end of its grid."
            for optimizer, curves in both.items()
            if curves[0].at_edge
        )
        failed = tuple(
            f"{optimizer} on {self.name} with seed {seed} ends at a loss of {curve.final:.3g}, against "
            f"{curves[0].final:.3g} with seed 0, which its rate {curves[0].rate:g} was chosen by."
            for optimizer, curves in both.items()
            for seed, curve in enumerate(curves)
            if _fall(curve) < _FAILED * _fall(curves[0])
        )
        return ends + failed

    def draw(self, axes: Axes) -> None:
        """Draw the training losses of both, on a logarithmic scale where they fall by more than a decade."""
        series = {}
        for label, curves in (("SGD", self.sgd), ("Adam", self.adam)):
            pieces = np.array_split(np.arange(len(curves[0].losses)), min(_POINTS, len(curves[0].losses)))
            losses = np.array([[curve.losses[piece].mean() for piece in pieces] for curve in curves])
            series[f"{label}, rate {curves[0].rate:g}"] = (np.array([piece.mean() + 1.0 for piece in pieces]), losses)
        figures.curves(axes, series)
        drawn = np.concatenate([losses.ravel() for _, losses in series.values()])
        drawn = drawn[np.isfinite(drawn)]
        scale = "log" if drawn.size and drawn.max() > 10.0 * drawn.min() > 0.0 else "linear"
        axes.set(yscale=scale, xlabel="step", ylabel="training loss, nats", title=self.name)


def _fall(curve: Curve) -> float:
    """Return by how much the loss fell; minus infinity where the training diverged."""
    return float(curve.losses[0]) - curve.final


def median(values: Sequence[float]) -> float:
    """Return the median of numbers."""
    return float(np.median(values))


def gap(setting: Setting, model: str | Entry) -> Gap:
    """Train a model with both optimizers and all seeds, or read the curves."""
    name = model if isinstance(model, str) else model.name
    sgd, adam = (
        tuple(cache.curves(setting, model, optimizer, seed) for seed in range(setting.seeds))
        for optimizer in ("sgd", "adam")
    )
    return Gap(name, sgd, adam)
