"""Spectra and training curves of the zoo, computed once and shared by all drivers.

Below ``setting.out.parent / "cache"``: a run folder of ``slq`` for every (model, stage, seed), which resumes inside; a
file for every training (model, optimizer, rate, seed), with its checkpoints. What is finished is read again; a process
that is killed loses the part in progress only.
"""

from __future__ import annotations

from torch import nn

from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.training import Curve
from hvp_engine.results.spectra import Spectra


def spectra(setting: Setting, model: str | Entry, stage: str, seed: int) -> Spectra:
    """Compute the spectra of a model's blocks at a stage of training, or read them.

    Args:
        setting: Size, folder, options.
        model: Name in the zoo, or an entry of one's own under a name of its own.
        stage: ``"init"``, or the share of training as a decimal number, such as ``"0.1"`` and ``"1.0"``.
        seed: Of model, data and probes.
    """
    raise NotImplementedError


def curves(setting: Setting, model: str | Entry, optimizer: str, seed: int) -> Curve:
    """Train a model with an optimizer at its best learning rate, or read the curve.

    The rate is searched over the entry's grid with seed 0.
    """
    raise NotImplementedError


def grid(setting: Setting, model: str | Entry, optimizer: str) -> dict[float, Curve]:
    """Return the curves of the search for the best learning rate (seed 0), by rate in falling order."""
    raise NotImplementedError


def checkpoint(setting: Setting, model: str | Entry, stage: str, seed: int) -> nn.Module:
    """Return a model at a stage of its training with Adam at the best rate, in eval mode."""
    raise NotImplementedError
