"""Spectra while a Trainer of transformers trains."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from os import PathLike
from typing import Any

from hvp_engine.errors import ConfigurationError
from hvp_engine.integrations.logger import SpectrumLogger
from hvp_engine.integrations.schedule import Every
from hvp_engine.problem.objective import Loss


def _class_named(name: str) -> Any:
    """Return a class of transformers."""
    try:
        return getattr(importlib.import_module("transformers"), name)
    except ImportError as error:
        raise ConfigurationError(
            "A TrainerCallback needs transformers; pip install transformers, or this package with its extra [hf]."
        ) from error


class SpectrumCallback(_class_named("TrainerCallback")):  # type: ignore[misc]
    """Measures the curvature of the network that a Trainer trains, and logs it as the Trainer logs its losses.

    The numbers go to the Trainer's ``state.log_history`` and to everything that it reports to: TensorBoard, Weights &
    Biases, MLflow. A callback is not told whose it is, so it takes the Trainer:
    ``trainer.add_callback(SpectrumCallback(trainer, loss, [batch], every=500, out="spectra"))``.

    Attributes:
        logger: What measures: its ``history``, ``skipped`` and ``spectra``.
    """

    def __init__(
        self,
        trainer: Any,
        loss: Loss,
        data: Iterable[Any] | None,
        *,
        every: Every,
        out: str | PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        """Take the Trainer, and what to measure when.

        Args:
            trainer: The Trainer.
            loss: As for :func:`hvp_engine.slq`; :mod:`hvp_engine.losses` has some for networks of transformers.
            data: The probe batches, as the Trainer's collator makes them. Make them before the Trainer, whose
                constructor seeds the random generators, or without drawing from these.
            every: As for :class:`SpectrumLogger`, in optimiser steps.
            out: As for :class:`SpectrumLogger`.
            options: Further arguments of :class:`SpectrumLogger`.

        Raises:
            HvpEngineError: As of :class:`SpectrumLogger`; a ConfigurationError where ``trainer`` is no Trainer.
        """
        if not isinstance(trainer, _class_named("Trainer")):
            raise ConfigurationError(
                f"trainer is of type {type(trainer).__name__}; give the Trainer of transformers itself, once it is "
                "made: trainer.add_callback(SpectrumCallback(trainer, loss, data, every=500))."
            )
        self._trainer = trainer
        self.logger = SpectrumLogger(None, loss, data, every=every, out=out, **options)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the network before its first step."""
        if state.global_step == 0:
            self._measure(state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the network after a step that is due."""
        self._measure(state, control, **kwargs)

    def _measure(self, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
        self.logger.model = model
        found = self.logger.step(state.global_step, optimizer)
        if found is None:
            return
        # Trainer's own method: those of subclasses give their averages with every entry, and begin them anew. An entry
        # also means that none is to be made any more; the one of the losses at this step still is.
        wanted = control.should_log
        _class_named("Trainer").log(self._trainer, dict(found))
        control.should_log = wanted
