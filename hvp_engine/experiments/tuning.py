"""Fine-tuning with one optimizer at one rate: the curve, accuracy on the way, logits at the end; kept as a file."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.identity import identity
from hvp_engine.experiments.optimizers import make_optimizer
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.training import Curve, fit
from hvp_engine.problem.batches import moved
from hvp_engine.system.files import explained, write_atomic

FloatArray = NDArray[np.float64]

_LOOKS = 4  # at the test samples, evenly spaced, the last one at the end


@dataclass(frozen=True)
class Tuned:
    """What a fine-tuning went through, and what came of it.

    Attributes:
        losses: Training loss of every step (steps,); infinite from where it diverged.
        gradient_norms: Norm of the whole gradient before clipping (steps,).
        rate: Learning rate.
        steps: When test samples were looked at (looks,); none where they were not.
        accuracies: Share of them classified right then (looks,).
        logits: At the end (samples, classes).
        labels: The right classes (samples,).
    """

    losses: FloatArray
    gradient_norms: FloatArray
    rate: float
    steps: NDArray[np.int64]
    accuracies: FloatArray
    logits: FloatArray
    labels: NDArray[np.int64]

    @property
    def curve(self) -> Curve:
        """The training alone."""
        return Curve(self.losses, self.gradient_norms, rate=self.rate)


def tuned(setting: Setting, entry: Entry, optimizer: str, rate: float, seed: int, *, tested: bool) -> Tuned:
    """Fine-tune a model of an entry, or read what came of it.

    Args:
        setting: Size, folder, device, options.
        entry: The model, its data and its recipe; of its data ``(inputs..., labels)`` or a mapping with ``labels``.
        optimizer: By name.
        rate: Learning rate.
        seed: Of the head and of the order of data.
        tested: Whether test samples are looked at on the way and at the end.

    Raises:
        RunFolderError: The folder cannot be written.
    """
    tuning = identity(entry, optimizer, rate, seed, setting.device)
    name = f"{entry.name}-{optimizer}-{rate:g}-{seed}{'-tested' if tested else ''}.npz"
    path = setting.out.parent / "cache" / "tuning" / setting.size / name
    found = _read(path, tuning)
    if found is not None:
        return found
    result = _tune(setting, entry, optimizer, rate, seed, tested)
    buffer = io.BytesIO()
    np.savez(buffer, identity=np.array(tuning), **asdict(result))
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic({path: [buffer.getvalue()]})
    return result


def _tune(setting: Setting, entry: Entry, optimizer: str, rate: float, seed: int, tested: bool) -> Tuned:
    device = torch.device(setting.device)
    recipe = entry.recipe
    data = entry.data(seed)
    model = entry.build(seed).to(device)
    looks: dict[int, tuple[FloatArray, NDArray[np.int64]]] = {}
    due = {round(recipe.steps * look / _LOOKS) for look in range(1, _LOOKS + 1)} if tested else set()

    def look(step: int) -> None:
        if step in due:
            looks[step] = _answers(model, (moved(batch, device, None) for batch in data.held_out))

    curve = fit(
        model,
        entry.loss,
        (moved(batch, device, None) for batch in data.training()),
        make_optimizer(optimizer, model, rate, **recipe.options.get(optimizer, {})),
        recipe.schedule(recipe.steps),
        steps=recipe.steps,
        clip=recipe.clip,
        after=look,
    )
    if tested and recipe.steps not in looks:  # it diverged
        look(recipe.steps)
    logits, labels = looks[recipe.steps] if tested else (np.empty((0, 0)), np.empty(0, dtype=np.int64))
    steps = np.array(sorted(looks), dtype=np.int64)
    accuracies = np.array([np.mean(answers.argmax(axis=1) == right) for _, (answers, right) in sorted(looks.items())])
    return Tuned(curve.losses, curve.gradient_norms, rate, steps, accuracies, logits, labels)


@torch.no_grad()
def _answers(model: nn.Module, batches: Iterable[Any]) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return logits (samples, classes) and classes (samples,) of batches; the model is in training mode afterwards."""
    model.eval()
    logits, labels = [], []
    for batch in batches:
        if isinstance(batch, dict):
            logits.append(model(**{name: tensor for name, tensor in batch.items() if name != "labels"}))
            labels.append(batch["labels"])
        else:
            logits.append(model(*batch[:-1]))
            labels.append(batch[-1])
    model.train()
    return torch.cat(logits).double().cpu().numpy(), torch.cat(labels).cpu().numpy()


def _read(path: Path, identity: str) -> Tuned | None:
    """Read a result; None where there is no whole one of this fine-tuning, which must then be done again."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if str(file["identity"]) != identity:
                return None
            arrays = {name: file[name] for name in file.files if name not in ("identity", "rate")}
            return Tuned(rate=float(file["rate"]), **arrays)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None
