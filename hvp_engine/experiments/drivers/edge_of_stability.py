"""F4: full-batch gradient descent trains where the largest eigenvalue is near 2 / rate (Cohen et al. 2021, 2022).

A tanh network on 500 digits with the squared error. For Adam the eigenvalue is that of P^-1/2 H P^-1/2, P the diagonal
that its step is divided by, and the edge is 38 / rate at beta1 = 0.9; it is reported.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from hvp_engine.api import eigsh
from hvp_engine.experiments import figures
from hvp_engine.experiments.data import images
from hvp_engine.experiments.entry import seeded
from hvp_engine.experiments.optimizers import constant, make_optimizer
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Claim, Result, Table, at_least, at_most
from hvp_engine.experiments.training import fit

RATES = {"plain-sgd": (0.1, 0.3), "adam": (1e-3,)}
EDGES = {"plain-sgd": 2.0, "adam": 38.0}
LOW, HIGH, START = 0.9, 1.25, 0.9
_SAMPLES = 500
_STEPS, _EVERY = {"tiny": 40, "small": 2000, "paper": 2000}, {"tiny": 10, "small": 100, "paper": 100}
_SOURCE = "Cohen et al., arXiv 2103.00065 and 2207.14484; bounds measured here"
Batch = tuple[Tensor, Tensor]
Trace = tuple[NDArray[np.float64], NDArray[np.float64]]  # relative to the edge; loss of every step


def run(setting: Setting) -> Result:
    """Train with every rate and seed, and follow the largest eigenvalue."""
    began = time.perf_counter()
    steps = np.arange(0, _STEPS[setting.size] + 1, _EVERY[setting.size])
    runs = [(name, rate) for name, rates in RATES.items() for rate in rates]
    followed = {run: [follow(setting, *run, seed) for seed in range(setting.seeds)] for run in runs}
    found = {run: np.array([eigenvalues for eigenvalues, _ in seeds]) for run, seeds in followed.items()}
    with figures.style():
        figure, axes = figures.page(1, 3, 5.5, 2.0)
        for ax, (name, edge) in zip(axes[0], EDGES.items(), strict=False):
            figures.curves(
                ax, {f"rate {rate:g}": (steps, values) for (of, rate), values in found.items() if of == name}
            )
            ax.axhline(1.0, color="0.5", linewidth=0.6, linestyle="--")
            ax.set(xlabel="steps", ylabel=f"largest eigenvalue x rate / {edge:g}", title=_TITLES[name])
        figures.curves(
            axes[0, 2],
            {
                f"{_TITLES[name]}, {rate:g}": (range(_STEPS[setting.size]), [losses for _, losses in seeds])
                for (name, rate), seeds in followed.items()
            },
        )
        axes[0, 2].set(yscale="log", xlabel="steps", title="loss")
    rows = tuple(
        (_TITLES[name], rate, float(values[:, 0].mean()), *_half(values).T.tolist())
        for (name, rate), values in found.items()
    )
    rows = tuple((*row[:3], float(np.min(row[3:])), float(np.max(row[3:]))) for row in rows)
    columns = ("optimizer", "rate", "at the start", "smallest of the last half", "largest")
    settings = {
        "samples": _SAMPLES,
        "steps": _STEPS[setting.size],
        "network": "64-64-64-10, tanh",
        "loss": "half squared",
    }
    descent = {rate: values for (name, rate), values in found.items() if name == "plain-sgd"}
    seconds = {"all": time.perf_counter() - began}
    return Result(Table(columns, rows), claims(descent), figure, settings, seconds)


def follow(setting: Setting, optimizer: str, rate: float, seed: int) -> Trace:
    """Train with the full batch; return the largest eigenvalue every so many steps, over the edge, and losses."""
    model, batch = seeded(network)(seed).to(setting.device), full_batch(setting, seed)
    made = make_optimizer(optimizer, model, rate)
    every = _EVERY[setting.size]
    found: list[float] = []

    def look(step: int) -> None:
        if step % every == 0:
            found.append(largest(model, batch, made, setting) * rate / EDGES[optimizer])

    if optimizer != "adam":
        look(0)
    curve = fit(model, squared_error, repeat(batch), made, constant(), steps=_STEPS[setting.size], after=look)
    missing = 1 + _STEPS[setting.size] // every - len(found)
    early, late = (missing, 0) if optimizer == "adam" else (0, missing)  # Adam has no P before its first step
    return np.pad(found, (early, late), constant_values=np.nan), curve.losses


def network() -> nn.Module:
    """Make the network, 64-64-64-10 with tanh."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


def full_batch(setting: Setting, seed: int) -> Batch:
    """Draw the digits, with one-hot targets (samples, 10)."""
    inputs, labels = images.digits().train.draw(_SAMPLES, seed)
    return inputs.to(setting.device), F.one_hot(labels, 10).float().to(setting.device)


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Compute half the squared error, summed over outputs and averaged over samples."""
    inputs, targets = batch
    error: Tensor = model(inputs) - targets
    return 0.5 * error.square().sum(dim=1).mean()


def largest(model: nn.Module, batch: Batch, optimizer: Optimizer, setting: Setting) -> float:
    """Return the largest eigenvalue of the Hessian, for Adam of the one that its step sees."""
    precondition = optimizer if isinstance(optimizer, Adam) else None
    found = eigsh(
        model, squared_error, data=[batch], k=1, which="LA", vectors=False, precondition=precondition,
        precision=setting.precision, check=False, progress=False,
    )  # fmt: skip
    return float(found["full"].values[0])


def claims(descent: Mapping[float, NDArray[np.float64]]) -> tuple[Claim, ...]:
    """Decide for gradient descent by the last half of every seed, and by the start of the smaller rate."""
    halves = [_half(values) for values in descent.values()]
    low, high = (np.min([h.min(axis=1) for h in halves], axis=0), np.max([h.max(axis=1) for h in halves], axis=0))
    start = descent[min(descent)][:, 0]
    what, of = "largest eigenvalue x rate / 2", "over the last half, both rates"
    return (
        at_least(f"{what} >= {LOW} {of}", "smallest", low.tolist(), LOW, _SOURCE, paper=1.0),
        at_most(f"{what} <= {HIGH} {of}", "largest", high.tolist(), HIGH, _SOURCE, paper=1.0),
        at_most(f"{what} <= {START} at the start, rate {min(descent):g}", "value", start.tolist(), START, _SOURCE),
    )


def _half(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[:, values.shape[1] // 2 :]


_TITLES = {"plain-sgd": "gradient descent", "adam": "Adam"}
