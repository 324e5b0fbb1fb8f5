"""Spectra and training curves of the zoo, computed once and shared by all drivers.

Below ``setting.out.parent / "cache"``: a run folder of ``slq`` for every (model, stage, seed), which resumes inside; a
file for every training (model, optimizer, rate, seed), with its checkpoints. What is finished is read again; a process
that is killed loses the part in progress only. Whatever else decides a number (size, device, precision, options, paths
of data) is in the name of the folder between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvp_engine import losses
from hvp_engine.api import slq
from hvp_engine.blocks import BlockSpec
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.calibration import calibrate
from hvp_engine.experiments.curve_files import read_curve, write_curve
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.identity import identity
from hvp_engine.experiments.optimizers import make_optimizer
from hvp_engine.experiments.registry import ZOO_OPTIONS, Setting
from hvp_engine.experiments.training import Curve, accuracy, fit, held_out, search
from hvp_engine.experiments.zoo import entry_of
from hvp_engine.problem.batches import moved
from hvp_engine.results.spectra import Spectra
from hvp_engine.system.files import explained
from hvp_engine.system.json_files import checksum
from hvp_engine.system.progress import ProgressReporter
from hvp_engine.system.tensor_files import read_sealed_tensors, write_tensors

INIT = "init"
LANCZOS = {"tiny": (12, 1), "small": (24, 2), "paper": (100, 10)}  # steps and probes
STAGES = {
    "tiny": ("0.5", "1.0"),
    "small": ("0.1", "0.5", "1.0"),
    "paper": ("0.001", "0.025", "0.05", "0.075", "0.1", "0.5", "1.0"),
}
"""Shares of training with a checkpoint, by size."""

_SEARCH_SEED = 0
_CURVES = "curves"
_OF_TRAININGS = ("order", "tokens", "steps")  # of ZOO_OPTIONS, what a training depends on
_CHECKPOINTED = "adam"


def spectra(
    setting: Setting,
    model: str | Entry,
    stage: str,
    seed: int,
    *,
    blocks: BlockSpec = None,
    steps: int | None = None,
    probes: int | None = None,
    label: str = "",
) -> Spectra:
    """Compute the spectra of a model's blocks at a stage of training, or read them.

    Args:
        setting: Size, folder, options.
        model: Name in the zoo, or an entry of one's own under a name of its own.
        stage: ``"init"``, or a share of training, one of :data:`STAGES` at this size.
        seed: Of model, data and probes.
        blocks: Other blocks than the entry's; they need a ``label``.
        steps: Lanczos steps; None takes the size's.
        probes: Random vectors per block; None takes the size's.
        label: Becomes part of the folder's name.
    """
    entry = entry_of(setting, model)
    usual = LANCZOS[setting.size]
    m = steps or setting.option("m", usual[0])
    count = probes or setting.option("probes", usual[1])
    named = f"-{label}" if label else ""
    drawn = "" if (m, count) == usual else f"-m{m}-p{count}"
    network = checkpoint(setting, entry, stage, seed)
    out = folder(setting, "spectra") / f"{entry.name}-{stage}-{seed}{named}{drawn}"
    return slq(
        network,
        entry.loss,
        entry.choose(network) if blocks is None else blocks,
        data=entry.data(seed).fixed,
        steps=m,
        probes=count,
        seed=seed,
        precision=setting.precision,
        out=out,
    )


def curves(setting: Setting, model: str | Entry, optimizer: str, seed: int) -> Curve:
    """Train a model with an optimizer at its best learning rate, or read the curve.

    The rate is searched over the entry's grid with seed 0, on the training loss.

    Args:
        setting: Size, folder, options.
        model: Name in the zoo, or an entry of one's own under a name of its own.
        optimizer: One of :data:`hvp_engine.experiments.optimizers.OPTIMIZERS` that the entry has a grid for.
        seed: Of model and data.
    """
    entry = entry_of(setting, model)
    best, _ = _searched(setting, entry, optimizer)
    curve = _trained(setting, entry, optimizer, best.rate, seed)
    return replace(curve, at_edge=best.at_edge)


def grid(setting: Setting, model: str | Entry, optimizer: str) -> dict[float, Curve]:
    """Return the curves of the search for the best learning rate (seed 0), by rate in falling order."""
    return _searched(setting, entry_of(setting, model), optimizer)[1]


def checkpoint(setting: Setting, model: str | Entry, stage: str, seed: int) -> nn.Module:
    """Return a model at a stage of its training with Adam at the best rate, in eval mode.

    BatchNorm has the statistics of the fixed batches, unless ``--set bn=raw`` leaves those of the training.

    Args:
        setting: Size, folder, options.
        model: Name in the zoo, or an entry of one's own under a name of its own.
        stage: ``"init"``, or a share of training, one of :data:`STAGES` at this size.
        seed: Of model and data.

    Raises:
        ConfigurationError: There is no checkpoint of that stage at this size.
    """
    entry = entry_of(setting, model)
    network = entry.build(seed).to(setting.device)
    if stage != INIT:
        if stage not in STAGES[setting.size]:
            raise ConfigurationError(
                f"There is no checkpoint after {stage} of a training at size {setting.size}; take {INIT} or one of "
                f"{', '.join(STAGES[setting.size])}."
            )
        rate = curves(setting, entry, _CHECKPOINTED, seed).rate
        path = _checkpoint_path(setting, entry, rate, seed, stage)
        network.load_state_dict(read_sealed_tensors(path, identity(entry, _CHECKPOINTED, rate, seed)))
    if setting.option("bn", "data") == "raw":
        return network.eval()
    fixed = [moved(batch, torch.device(setting.device), None) for batch in entry.data(seed).fixed]
    return calibrate(network, entry.loss, fixed)


def _searched(setting: Setting, entry: Entry, optimizer: str) -> tuple[Curve, dict[float, Curve]]:
    if optimizer not in entry.rates:
        raise ConfigurationError(
            f"The model {entry.name} has no grid of rates for {optimizer!r}; it has one for {', '.join(entry.rates)}."
        )
    train = partial(_trained, setting, entry, optimizer, seed=_SEARCH_SEED)
    return search(train, entry.rates[optimizer], extensions=0 if setting.size == "tiny" else 2)


def _trained(setting: Setting, entry: Entry, optimizer: str, rate: float, seed: int) -> Curve:
    """Train, or read the curve of a training that is finished; an unfinished one starts again."""
    path = folder(setting, _CURVES) / f"{entry.name}-{optimizer}-{rate:g}-{seed}.npz"
    training = identity(entry, optimizer, rate, seed)
    paths = _checkpoint_paths(setting, entry, rate, seed) if optimizer == _CHECKPOINTED else {}
    found = read_curve(path, training)
    if found is not None and (not math.isfinite(found.final) or all(p.exists() for p in paths.values())):
        return found
    curve = _train(setting, entry, optimizer, rate, seed, partial(_write_checkpoint, paths, training))
    write_curve(path, curve, training)
    return curve


def _train(
    setting: Setting,
    entry: Entry,
    optimizer: str,
    rate: float,
    seed: int,
    keep: Callable[[nn.Module, int], None],
) -> Curve:
    recipe, batches = entry.recipe, entry.data(seed)
    device = torch.device(setting.device)
    model = entry.build(seed).to(device)
    label = f"train {entry.name}, {optimizer} {rate:g}, seed {seed}"
    with ProgressReporter(label, recipe.steps, None) as reporter, _arithmetic(setting):

        def after(step: int) -> None:
            reporter.advance(1)
            keep(model, step)

        curve = fit(
            model,
            entry.loss,
            _moved(batches, device),
            make_optimizer(optimizer, model, rate, **recipe.options.get(optimizer, {})),
            recipe.schedule(recipe.steps),
            steps=recipe.steps,
            clip=recipe.clip,
            microbatches=recipe.microbatches,
            after=after,
        )
        tested = [moved(batch, device, None) for batch in batches.held_out]
        if math.isfinite(curve.final):
            share = accuracy(model, tested) if entry.loss is losses.classification else math.nan
            curve = replace(curve, held_out=held_out(model, entry.loss, tested), accuracy=share)
    return curve


def _moved(batches: Batches, device: torch.device) -> Iterator[Any]:
    for batch in batches.training():
        yield moved(batch, device, None)


def _arithmetic(setting: Setting) -> torch.autocast:
    """Return the context that a training computes in: bfloat16 where that is the setting's precision."""
    return torch.autocast(setting.device, torch.bfloat16, enabled=setting.precision == "bf16")


def _write_checkpoint(paths: Mapping[int, Path], identity: str, model: nn.Module, step: int) -> None:
    if step in paths:
        with explained(paths[step]):
            paths[step].parent.mkdir(parents=True, exist_ok=True)
        write_tensors(paths[step], model.state_dict(), identity)


def _checkpoint_paths(setting: Setting, entry: Entry, rate: float, seed: int) -> dict[int, Path]:
    """Return the files of a training's checkpoints by the steps taken."""
    return {
        max(1, round(float(stage) * entry.recipe.steps)): _checkpoint_path(setting, entry, rate, seed, stage)
        for stage in STAGES[setting.size]
    }


def _checkpoint_path(setting: Setting, entry: Entry, rate: float, seed: int, stage: str) -> Path:
    name = f"{entry.name}-{_CHECKPOINTED}-{rate:g}-{seed}-{stage}.safetensors"
    return folder(setting, _CURVES) / "checkpoints" / name


def folder(setting: Setting, kind: str) -> Path:
    """Return the cache's folder for all that has the same size, device, precision, options and data.

    Curves do not depend on the options of spectra, so that another number of probes trains nothing anew.

    Args:
        setting: Size, folder, options.
        kind: What is kept there, such as ``"spectra"`` and ``"curves"``.

    Raises:
        RunFolderError: It cannot be made.
    """
    read = _OF_TRAININGS if kind == _CURVES else ZOO_OPTIONS
    decisive: dict[str, Any] = {key: setting.options[key] for key in read if key in setting.options}
    if (setting.device, setting.precision) != ("cpu", "fp32"):
        decisive |= {"device": setting.device, "precision": setting.precision}
    decisive |= {f"data {name}": str(path.resolve()) for name, path in setting.data.items()}
    variant = f"{setting.size}-{checksum(decisive)[:8]}" if decisive else setting.size
    found = setting.out.parent / "cache" / kind / variant
    with explained(found):
        found.mkdir(parents=True, exist_ok=True)
    return found
