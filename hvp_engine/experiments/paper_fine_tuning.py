"""How arXiv 2502.00213 fine-tunes: learning rates, epochs and batches of its released configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hvp_engine.experiments.entry import Recipe
from hvp_engine.experiments.fine_tuning_recipe import OPTIMIZERS, fine_tuning
from hvp_engine.experiments.registry import Setting

_SAMPLES = {  # to train on; of texts the first nine tenths, of pictures training and validation together
    "boolq": 8484, "cb": 225, "rte": 2241, "wic": 4885, "cola": 7696, "sst2": 60_614, "mrpc": 3301,
    "flowers102": 2040, "aircraft": 6667,
}  # fmt: skip
_EPOCHS = {"flowers102": 50, "aircraft": 100}
_TEXT_EPOCHS = 20
_BATCH, _SMALL_BATCH = 32, {"cb": 8, "rte": 8}

_USUAL = (1e-5, 1e-5, 0.1, 0.01, 1e-5, 1e-5)  # in the order of OPTIMIZERS
_CONVOLUTIONS = (1e-4, 1e-4, 0.1, 0.01, 1e-4, 1e-5)
_RATES = {
    ("roberta-base", "cb"): (1e-4, 1e-5, 0.1, 0.01, 1e-5, 1e-5),
    ("roberta-base", "cola"): (1e-5, 1e-5, 0.01, 1e-3, 1e-4, 1e-5),
    ("roberta-base", "rte"): (1e-5, 1e-5, 0.01, 1e-3, 1e-5, 1e-6),
    ("roberta-base", "wic"): (1e-5, 1e-5, 0.01, 1e-3, 1e-5, 1e-5),
    ("resnet-18", "flowers102"): _CONVOLUTIONS,
    ("resnet-18", "aircraft"): _CONVOLUTIONS,
    ("vit-b16", "flowers102"): (1e-5, 1e-5, 0.1, 0.01, 1e-4, 1e-5),
    ("vit-b16", "aircraft"): (1e-5, 1e-5, 0.5, 0.01, 1e-5, 1e-5),
}


def rates(network: str, task: str) -> Mapping[str, Sequence[float]]:
    """Return the published learning rate of every optimizer, a grid of one each."""
    return {name: (rate,) for name, rate in zip(OPTIMIZERS, _RATES.get((network, task), _USUAL), strict=True)}


def batch(task: str) -> int:
    """Return the samples of a batch."""
    return _SMALL_BATCH.get(task, _BATCH)


def recipe(setting: Setting, task: str) -> Recipe:
    """Make the recipe of a task: as many steps as its epochs have, decaying for text and rising for pictures."""
    steps = _EPOCHS.get(task, _TEXT_EPOCHS) * (_SAMPLES[task] // batch(task))
    return fine_tuning(setting, steps, batch(task), "rising" if task in _EPOCHS else "linear")
