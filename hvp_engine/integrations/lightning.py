"""Spectra while a Trainer of Lightning trains, of the package ``lightning`` or of ``pytorch_lightning``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from os import PathLike
from typing import Any

import torch
from torch import nn

from hvp_engine.errors import ConfigurationError
from hvp_engine.integrations.logger import SpectrumLogger
from hvp_engine.integrations.schedule import Every
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.obstacles import parted, refuse


def _callback_class() -> Any:
    """Return the base class of callbacks, of the package that is in use where both are installed."""
    packages = sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda package: package not in sys.modules)
    for package in packages:
        try:
            return importlib.import_module(package).Callback
        except ImportError:
            continue
    raise ConfigurationError(
        "A callback of Lightning needs that package; pip install lightning, or this package with its extra [lightning]."
    )


class SpectrumCallback(_callback_class()):  # type: ignore[misc]
    """Measures the curvature of the module that a Lightning Trainer trains, and gives it to the Trainer's loggers.

    ``Trainer(callbacks=[SpectrumCallback(loss, [batch], every=500, out="spectra")])``. In a training of one process the
    numbers are among ``trainer.callback_metrics``, too, where other callbacks find them. In one of several processes
    the first one alone has them, and a callback that stops or saves by them would wait for the others for ever.

    Attributes:
        logger: What measures: its ``history``, ``skipped`` and ``spectra``.
    """

    def __init__(
        self,
        loss: Loss,
        data: Iterable[Any] | None,
        *,
        every: Every,
        out: str | PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        """Take what to measure, and when.

        Args:
            loss: As for :func:`hvp_engine.slq`; it gets the LightningModule.
            data: The probe batches.
            every: As for :class:`SpectrumLogger`, in optimiser steps (``trainer.global_step``).
            out: As for :class:`SpectrumLogger`.
            options: Further arguments of :class:`SpectrumLogger`.

        Raises:
            HvpEngineError: As of :class:`SpectrumLogger`.
        """
        self.logger = SpectrumLogger(None, loss, data, every=every, out=out, **options)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure the module before its first step.

        Raises:
            ConfigurationError: The strategy left this process with parts of the parameters alone.
        """
        if isinstance(trainer.strategy.model, nn.Module):  # what the strategy made of the module
            refuse(parted(trainer.strategy.model))
        if trainer.global_step == 0:
            self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Measure the module after a step that is due; batches that only accumulate gradients are none."""
        self._measure(trainer, pl_module)

    def _measure(self, trainer: Any, module: Any) -> None:
        self.logger.model = module
        optimizer = trainer.optimizers[0] if len(trainer.optimizers) == 1 else None
        found = self.logger.step(trainer.global_step, optimizer)
        if found is None:
            return
        for logger in trainer.loggers:  # not by self.log, which leaves out all steps but every so many
            logger.log_metrics(dict(found), step=trainer.global_step)
        if trainer.world_size == 1:
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in found.items()})
