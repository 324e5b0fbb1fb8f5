"""One measurement of a network in training: its spectra, the curvature that its optimiser sees, its run folder."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hvp_engine.api import eigsh, slq
from hvp_engine.blocks import Block, BlockSpec, resolve
from hvp_engine.errors import ConfigurationError, ForeignRunError
from hvp_engine.integrations import metrics, rates
from hvp_engine.integrations.aside import Mode, held_still, unwrapped
from hvp_engine.integrations.steps_folder import set_aside, step_folder
from hvp_engine.problem.objective import Loss
from hvp_engine.results.spectra import Spectra

log = logging.getLogger(__name__)

_OURS = ("model", "loss", "blocks", "data", "precondition", "progress", "out")  # of slq's arguments
_DEFAULTS = {"steps": 32, "probes": 2}  # of a job without a tolerance
_SHARED = ("seed", "operator", "precision", "microbatch", "memory", "head_curvature")  # with eigsh
_MOST_PRODUCTS = 100  # for the largest eigenvalue that an optimiser sees
_FACTS = "training"  # key of a manifest
_DIVIDED, _SECONDS = "hessian/preconditioned_largest", "hessian/seconds"


class Measurement:
    """What is measured at every step of a training that is due: the same blocks, data and probes each time.

    Attributes:
        options: Further arguments of :func:`hvp_engine.slq`.
    """

    def __init__(
        self,
        loss: Loss,
        data: Iterable[Any] | None,
        blocks: BlockSpec,
        mode: Mode,
        top: int,
        out: Path | None,
        options: Mapping[str, Any],
    ) -> None:
        """Take what does not change; see :class:`hvp_engine.integrations.SpectrumLogger`.

        Raises:
            ConfigurationError: An option is none of ``slq``'s, or one that is not free here.
        """
        known = [name for name in inspect.signature(slq).parameters if name not in _OURS]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise ConfigurationError(
                f"{unknown[0]}= is no option here; those of hvp_engine.slq are {', '.join(known)}."
            )
        self._loss, self._data, self._blocks, self._mode, self._top, self._out = loss, data, blocks, mode, top, out
        self.options: dict[str, Any] = {**({} if "tolerance" in options else _DEFAULTS), **options}
        self._checked = False

    def take(self, model: nn.Module, step: int, optimizer: Optimizer | None) -> tuple[Spectra, dict[str, float]]:
        """Measure a network; what its run folder holds of the same network already is read there.

        Args:
            model: The network, wrapped or not.
            step: How many steps it was trained for.
            optimizer: What trains it, if that is to count.

        Returns:
            The spectra, and all numbers by name.

        Raises:
            HvpEngineError: One of its subclasses, with cause and fix.
        """
        inner, optimizer = unwrapped(model), rates.innermost(optimizer)
        began = time.monotonic()
        folder = None if self._out is None else step_folder(self._out, step)
        with held_still(inner, self._mode):
            spectra = self._spectra(inner, step, folder)
            earlier = spectra.manifest.get(_FACTS)
            found = dict(earlier["metrics"]) if isinstance(earlier, dict) else metrics.of_spectra(spectra, self._top)
            if _DIVIDED not in found:
                found |= self._divided(inner, optimizer)
        found |= metrics.named(rates.edges(optimizer))
        found.setdefault(_SECONDS, time.monotonic() - began)
        facts = {"step": step, "metrics": dict(found)}
        if facts != earlier:
            spectra.manifest[_FACTS] = facts
            if folder is not None:
                spectra.save(folder)
        return spectra, found

    def _spectra(self, model: nn.Module, step: int, folder: Path | None) -> Spectra:
        """Compute the spectra; set aside what the folder holds of another network, and of later steps of that."""
        options = {"check": not self._checked, **self.options}
        blocks = with_whole(model, self._blocks)

        def compute() -> Spectra:
            return slq(model, self._loss, blocks, data=self._data, progress=False, out=folder, **options)

        try:
            found = compute()
        except ForeignRunError as error:
            if self._out is None:
                raise
            log.warning("%s They are kept in %s, and the step is measured anew.", error, set_aside(self._out, step))
            found = compute()
        self._checked = True
        return found

    def _divided(self, model: nn.Module, optimizer: Optimizer | None) -> dict[str, float]:
        """Find the largest eigenvalue of the matrix that an optimiser of Adam's kind sees, once it has taken a step."""
        block = rates.stepped_block(model, optimizer)
        if block is None:
            return {}
        shared = {name: self.options[name] for name in _SHARED if name in self.options}
        pairs = eigsh(
            model,
            self._loss,
            [block],
            data=self._data,
            k=1,
            which="LA",
            maxiter=_MOST_PRODUCTS,
            vectors=False,
            precondition=optimizer,
            check=False,
            progress=False,
            **shared,
        )
        return {_DIVIDED: float(pairs[block.name].values[0])}


def with_whole(model: nn.Module, blocks: BlockSpec) -> BlockSpec:
    """Return blocks and, as the last one, all parameters, unless a block of that name is among them."""
    if blocks is None:
        return None
    found = resolve(model, blocks).blocks
    if metrics.WHOLE in found:
        return blocks
    (whole,) = resolve(model).blocks.values()
    return [
        Block(block.name, [(part.parameter, part.index) for part in block.parts]) for block in (*found.values(), whole)
    ]
