"""One measurement of a network in training: its spectra, the curvature that its optimiser sees, its run folder."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from hvp_engine.api import eigsh, slq
from hvp_engine.blocks import Block, BlockSpec, resolve
from hvp_engine.errors import ConfigurationError, ForeignRunError, ObjectiveError
from hvp_engine.integrations import metrics, rates
from hvp_engine.integrations.aside import Mode, held_still, unwrapped
from hvp_engine.integrations.steps_folder import StepsFolder
from hvp_engine.jobs.checkpoint import begun
from hvp_engine.jobs.description import digest_of
from hvp_engine.jobs.first_sight import stored_identity
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.registry import operator_named
from hvp_engine.problem.checks import check_ingredients, check_module, refuse_unusable
from hvp_engine.problem.loss_signature import check_loss
from hvp_engine.problem.objective import Loss
from hvp_engine.problem.reading import check_data, length_of
from hvp_engine.results.spectra import Spectra
from hvp_engine.system.run_files import is_finished

log = logging.getLogger(__name__)

_OURS = ("model", "loss", "blocks", "data", "precondition", "progress", "out", "first_probe")  # of slq's arguments
_ALONE = "distributed"  # one more, which deserves a word
_DEFAULTS = {"steps": 32, "probes": 2}  # of a job without a tolerance
_SHARED = ("seed", "operator", "precision", "microbatch", "memory", "head_curvature")  # with eigsh
_MOST_PRODUCTS = 100  # for the largest eigenvalue that an optimiser sees
_FACTS = "training"  # key of a manifest
_DIVIDED, _SECONDS = "hessian/preconditioned_largest", "hessian/seconds"


class Measurement:
    """What is measured at every step of a training that is due: the same blocks, data and probes each time.

    Attributes:
        options: Further arguments of :func:`hvp_engine.slq`.
        folder: Where the run folders are; None keeps none.
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
            ConfigurationError: An option is none of ``slq``'s, or one that is not free here, or has none of its values;
                the loss is none.
            ObjectiveError: The data is no collection of batches, is empty, or can be read only once.
        """
        self.options: dict[str, Any] = {**({} if "tolerance" in options else _DEFAULTS), **options}
        self._settings = _settings(self.options)
        check_loss(loss, takes_batch=data is not None)
        check_data(data)
        if data is not None and length_of(data) == 0:
            raise ObjectiveError("data is empty: it yields no batch; give a list of the batches to measure with.")
        self._loss, self._data, self._blocks, self._mode, self._top = loss, data, blocks, mode, top
        self.folder = None if out is None else StepsFolder(out)
        self._checked = False

    def prove(self, model: nn.Module, optimizer: Optimizer | None) -> bool:
        """Refuse what cannot be measured, by what is seen without computing anything.

        Returns:
            Whether there was all that is to be seen: a lazy module has its parameters once it has run.

        Raises:
            HvpEngineError: One of its subclasses, with cause and fix.
        """
        check_module(model)
        inner = unwrapped(model)
        rates.innermost(optimizer)
        if any(is_lazy(parameter) for parameter in inner.parameters()):
            return False
        with held_still(inner, self._mode):
            check_ingredients(inner, self._loss, self._data)
        refuse_unusable(inner)
        blocks = resolve(inner, with_whole(inner, self._blocks)).blocks
        self._settings.check_blocks(len(blocks))
        return True

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
        with held_still(inner, self._mode):
            spectra = self._spectra(inner, step)
            earlier = spectra.manifest.get(_FACTS)
            kept = earlier.get("metrics", {}) if isinstance(earlier, dict) else {}
            found = metrics.of_spectra(spectra, self._top)
            block = rates.stepped_block(inner, optimizer)
            if block is not None:
                known = _DIVIDED in kept
                found |= {_DIVIDED: kept[_DIVIDED]} if known else self._divided(inner, optimizer, block)
        found |= metrics.named(rates.edges(optimizer))
        found[_SECONDS] = kept.get(_SECONDS, time.monotonic() - began)
        facts = {"step": step, "metrics": dict(found)}
        if facts != earlier:
            spectra.manifest[_FACTS] = facts
            if self.folder is not None:
                spectra.save(self.folder.of(step))
        return spectra, found

    def pass_over(self, model: nn.Module, step: int) -> None:
        """Set aside what the folder holds of another network at a step that is not measured, and of later steps.

        Raises:
            RunFolderError: It cannot be read, or moved.
        """
        if self.folder is None or not self.folder.has(step):
            return
        if not self._is_of(unwrapped(model), self.folder.of(step)):
            log.warning(
                "%s is of another network than the one in training now. It is kept in %s, with all that is there of "
                "later steps.",
                self.folder.of(step),
                self.folder.set_aside(),
            )
        self.folder.settle(step)

    def _spectra(self, model: nn.Module, step: int) -> Spectra:
        """Compute the spectra, or read them; set aside what the folder holds of another course of the training."""
        out = None if self.folder is None else self.folder.of(step)
        options = {"check": not self._checked, **self.options}
        blocks = with_whole(model, self._blocks)

        def compute() -> Spectra:
            return slq(model, self._loss, blocks, data=self._data, progress=False, out=out, **options)

        if self.folder is None or out is None:
            found = compute()
        else:
            is_there = is_finished(out)
            try:
                found = compute()
            except ForeignRunError as error:
                log.warning(
                    "%s: it is of another network, or was measured in another way. It is kept in %s, with all that is "
                    "there of later steps, and step %d is measured anew.",
                    str(error).partition(". Choose ")[0],  # what to do about it is done here
                    self.folder.set_aside(),
                    step,
                )
                found, is_there = compute(), True
            if not is_there and (kept := self.folder.set_aside(but=step)) is not None:
                log.warning(
                    "Step %d was measured for the first time, so that later steps in %s may be of another course of "
                    "the training. They are kept in %s.",
                    step,
                    self.folder.path,
                    kept,
                )
            self.folder.settle(step)
        self._checked = True
        return found

    def _is_of(self, model: nn.Module, run: Path) -> bool:
        """Say whether a run folder is of the network as it is now, by its parameters."""
        identity = (stored_identity(run) if is_finished(run) else begun(run)) or {}
        known, dtype = identity.get("parameters"), self._settings.dtype
        parameters = dict(model.named_parameters())
        if not isinstance(known, dict) or known.keys() != parameters.keys():
            return False
        cast = {name: p.detach().to(dtype) if p.is_floating_point() else p for name, p in parameters.items()}
        return all(digest_of(parameter) == known[name] for name, parameter in cast.items())

    def _divided(self, model: nn.Module, optimizer: Optimizer | None, block: Block) -> dict[str, float]:
        """Find the largest eigenvalue of the matrix that an optimiser sees; nothing where it does not converge."""
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
        )[block.name]
        return {_DIVIDED: float(pairs.values[0])} if pairs.converged[0] else {}


def _settings(options: Mapping[str, Any]) -> JobSettings:
    """Return what a job of some options is asked for.

    Raises:
        ConfigurationError: An option is none of ``slq``'s, or one that is not free here, or has none of its values.
    """
    if _ALONE in options:
        raise ConfigurationError(
            f"{_ALONE}= is no option here: of a training of several processes the first process measures alone, and "
            "would wait for the others; leave it out."
        )
    known = [name for name in inspect.signature(slq).parameters if name not in (*_OURS, _ALONE)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigurationError(f"{unknown[0]}= is no option here; those of hvp_engine.slq are {', '.join(known)}.")
    operator_named(options.get("operator", "hessian"))
    fields = {field.name for field in dataclasses.fields(JobSettings)}
    return JobSettings(**{name: value for name, value in options.items() if name in fields})


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
