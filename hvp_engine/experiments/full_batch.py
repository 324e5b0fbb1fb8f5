"""Training with the full batch, and the largest eigenvalue on the way (`edge_of_stability.py`)."""

from __future__ import annotations

from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from hvp_engine.api import eigsh
from hvp_engine.experiments.data import images
from hvp_engine.experiments.entry import seeded
from hvp_engine.experiments.optimizers import constant, make_optimizer
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.training import fit

EDGES = {"plain-sgd": 2.0, "adam": 38.0}  # the largest eigenvalue times the rate at the edge of stability
SAMPLES = 500
STEPS = {"tiny": 40, "small": 2000, "paper": 2000}
EVERY = {"tiny": 10, "small": 100, "paper": 100}
Batch = tuple[Tensor, Tensor]
Trace = tuple[NDArray[np.float64], NDArray[np.float64]]  # relative to the edge; loss of every step


def follow(setting: Setting, optimizer: str, rate: float, seed: int) -> Trace:
    """Train with the full batch; return the largest eigenvalue every so many steps, over the edge, and losses."""
    model, batch = seeded(network)(seed).to(setting.device), full_batch(setting, seed)
    made = make_optimizer(optimizer, model, rate)
    every, steps = EVERY[setting.size], STEPS[setting.size]
    found: list[float] = []

    def look(step: int) -> None:
        if step % every == 0:
            found.append(largest(model, batch, made, setting) * rate / EDGES[optimizer])

    if optimizer != "adam":
        look(0)
    curve = fit(model, squared_error, repeat(batch), made, constant(), steps=steps, after=look)
    missing = 1 + steps // every - len(found)
    early, late = (missing, 0) if optimizer == "adam" else (0, missing)  # Adam has no P before its first step
    return np.pad(found, (early, late), constant_values=np.nan), curve.losses


def network() -> nn.Module:
    """Make the network, 64-64-64-10 with tanh."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


def full_batch(setting: Setting, seed: int) -> Batch:
    """Draw the digits, with one-hot targets (samples, 10)."""
    inputs, labels = images.digits().train.draw(SAMPLES, seed)
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
