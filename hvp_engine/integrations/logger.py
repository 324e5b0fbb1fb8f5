"""Spectra while a network is trained, for training loops of one's own."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from os import PathLike
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hvp_engine.blocks import BlockSpec
from hvp_engine.errors import ConfigurationError, HvpEngineError
from hvp_engine.integrations.aside import Mode, is_first_process
from hvp_engine.integrations.budget import Budget
from hvp_engine.integrations.measurement import Measurement
from hvp_engine.integrations.schedule import Every, Schedule
from hvp_engine.jobs.folder import located
from hvp_engine.krylov.settings import whole_number
from hvp_engine.problem.objective import Loss
from hvp_engine.results.spectra import Spectra
from hvp_engine.system.files import prove_writable
from hvp_engine.system.formatting import raised

log = logging.getLogger(__name__)


class SpectrumLogger:
    """Measures the curvature of a network at some steps of its training, and leaves the training as it was.

    The network, its modes, gradients and buffers, the optimiser, autocast and all random generators are afterwards what
    they were, so that the training takes the same course, to the bit, with the logger and without it. Networks that
    ``torch.compile`` or data parallelism wrap are measured unwrapped, in the first process alone.

    What can be seen to be wrong without computing anything is refused at once, or by the first call, whether its step
    is due or not. A measurement that fails after one has succeeded, however it fails, is told to the log, and the
    training goes on.

    Example:
        ``logger = SpectrumLogger(model, loss, [batch], every="log", out="spectra")``, and after every
        ``optimizer.step()``: ``numbers = logger.step(step, optimizer)``.

    Attributes:
        model: The network; it may be replaced, and may be None until it is there.
        history: The numbers of every step that was measured.
        skipped: The steps that the budget had no time for.
        spectra: The latest spectra; None before the first ones.
    """

    def __init__(
        self,
        model: nn.Module | None,
        loss: Loss,
        data: Iterable[Any] | None,
        *,
        every: Every,
        out: str | PathLike[str] | None = None,
        budget: float | None = None,
        blocks: BlockSpec = None,
        top: int = 3,
        mode: Mode = "eval",
        **options: Any,
    ) -> None:
        """Take what to measure, and when.

        Args:
            model: The network, wrapped or not.
            loss: As for :func:`hvp_engine.slq`.
            data: The probe batches, the same at every step: a list of few.
            every: A number N for the steps 0, N, 2N, ...; ``"log"`` for 0, 1, 2, 4, 8, ...; or a list of steps. A loop
                that does not come by at a step is measured when it comes by next.
            out: Folder with a run folder ``step-000100`` per step, or None. A training that is resumed with the same
                folder reads there what was measured of the same network; what it holds of another one at this step, or
                for later steps, is moved to ``.replaced`` inside it.
            budget: Share of the time since the first call that measurements may take, 0.05 for instance. The first one
                is taken in any case; a later one is skipped, and the log says so, where one that takes as long as the
                latest would exceed the share. None skips nothing.
            blocks: As for :func:`hvp_engine.slq`; the whole network is measured beside them as the block ``"full"``.
            top: How many of the largest eigenvalues to give, as far as so few steps tell them apart.
            mode: ``"eval"`` measures without dropout and with the running statistics of BatchNorm; ``"as it is"``
                leaves the modules' modes, and a loss that is random or depends on the batch is refused.
            options: Further arguments of :func:`hvp_engine.slq`: ``steps`` and ``probes`` (32 and 2, unless there is
                a ``tolerance``), ``seed``, ``operator``, ``precision``, ``microbatch``, ``memory`` and so
                on. The second derivative is checked once unless ``check`` says otherwise.

        Raises:
            ConfigurationError: An argument is none of its values.
            ObjectiveError: The data is no collection of batches, is empty, or can be read only once.
            RunFolderError: Nothing can be written into the folder.
        """
        if mode not in ("eval", "as it is"):
            raise ConfigurationError(f"mode={mode!r} is not one of 'eval', 'as it is'.")
        self.model = model
        self._schedule, self._budget = Schedule(every), Budget(budget)
        folder = None if out is None else located(out)
        self._measurement = Measurement(loss, data, blocks, mode, whole_number("top", top, 1), folder, options)
        ranked_later = os.environ.get("RANK", "0") != "0"  # torchrun's, before there is a group
        if folder is not None and is_first_process() and not ranked_later:
            prove_writable(folder)
        self._last: int | None = None
        self._proved = False
        self.history: dict[int, dict[str, float]] = {}
        self.skipped: list[int] = []
        self.spectra: Spectra | None = None

    def step(self, step: int, optimizer: Optimizer | None = None) -> dict[str, float] | None:
        """Measure, if the step is due; call it after every step of the training, and before the first with 0.

        Args:
            step: How many steps the network was trained for. A smaller one than before begins another training.
            optimizer: What trains it: its learning rate gives ``hessian/two_over_lr``, and one of Adam's kind
                ``hessian/preconditioned_largest``.

        Returns:
            The numbers by name, for any logger; None where nothing was measured.

        Raises:
            HvpEngineError: The first measurement fails, or cannot succeed; its subclass says why.
        """
        step = whole_number("step", step, 0)
        if not self._proved and self.model is not None:
            self._proved = self._measurement.prove(self.model, optimizer)
        begins = self._last is None or step < self._last
        after = step - 1 if self._last is None or begins else self._last
        self._last = step
        if begins and self._measurement.folder is not None:
            self._measurement.folder.begin(step)
        allowed = self._budget.allows()  # from the first step on: it begins the time
        if not self._schedule.due(after, step) or not is_first_process():
            return None
        if self.model is None:
            raise ConfigurationError("SpectrumLogger has no model yet; set its attribute model first.")
        try:
            if not allowed:
                self._skip(self.model, step)
                return None
            with self._budget.spending():
                self.spectra, found = self._measurement.take(self.model, step, optimizer)
        except Exception as error:
            if not self.history:
                raise
            ours = isinstance(error, HvpEngineError)  # whose message says all
            words = str(error) if ours else f"{raised(error)}."
            log.warning("Step %d was not measured: %s The training goes on.", step, words, exc_info=not ours)
            return None
        found |= {"hessian/share_of_time": self._budget.spent / max(self._budget.elapsed, 1e-9)}
        self.history[step] = found
        return found

    __call__ = step

    def _skip(self, model: nn.Module, step: int) -> None:
        """Say that there is no time."""
        self.skipped.append(step)
        log.warning(
            "Step %d is not measured: measurements took %.1f of %.1f seconds, another one would exceed their budget.",
            step,
            self._budget.spent,
            self._budget.elapsed,
        )
        self._measurement.pass_over(model, step)
