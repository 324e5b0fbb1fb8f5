"""The names under which a user may give data and weights to the experiments."""

from __future__ import annotations

from hvp_engine.experiments.data.packages import PACKAGES
from hvp_engine.experiments.pretrained_models import GPT2
from hvp_engine.experiments.studied_paper import CLASSES, NETWORKS
from hvp_engine.experiments.weights import CARRIED

DATA = (
    *(name for name, package in PACKAGES.items() if package.instead),
    "cornell", "mnist", "cifar100", "imagenet", "openwebtext", "alpaca", *CLASSES,
)  # fmt: skip
WEIGHTS = (*CARRIED, GPT2, *NETWORKS)
