"""What the choice of data does to every block, as a job: products of groups of the data kept apart.

First Lanczos runs on two halves of the data, in lock step, find what maximises and minimises the curvature of each;
when they are done, these vectors are multiplied by every group. Then random vectors are, one after the other.
:func:`hvp_engine.results.data_error.error_of_block` makes bars of what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.jobs.runner import Job
from hvp_engine.krylov.basis import Basis
from hvp_engine.krylov.lanczos import BatchedLanczos, Stream
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.settings import JobSettings, LanczosSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.problem import batches
from hvp_engine.problem.weights import check_split
from hvp_engine.results.data_error import ENDS, HALVES, WEIGHTLESS, GroupForms, halves
from hvp_engine.results.data_errors import DataErrors
from hvp_engine.scheduling.groups import Groups, of_samples, of_whole_batches
from hvp_engine.scheduling.waves import StreamSizes

GROUPS = 8
"""Into how many groups the data are divided where they suffice: bars are 20 % wider than those of very many."""

_STEPS = 20  # Lanczos steps on each half; what they leave to the extremes widens the bracket, by less than the data do
_PROBES = 8
_BASES = ("fp32", "bf16")  # how few vectors are kept, which are read to be combined: as the other job's, or as the last
_WORK_VECTORS = 8  # beside the bases: start vectors, products of halves, the four vectors of the extremes


def settings_of(settings: JobSettings, *, check: bool) -> JobSettings:
    """Return the settings of this job beside another one's: the same arithmetic, steps and probes of its own.

    Args:
        settings: The other job's.
        check: Whether the second derivative is tested; not again, where the other job did.
    """
    return replace(
        settings,
        steps=_STEPS + _PROBES,
        probes=1,
        first_probe=0,
        tolerance=None,
        basis=settings.basis if settings.basis in _BASES else _BASES[-1],
        distribution="gaussian",
        reorthogonalize="full",
        check=check,
    )


class DataErrorJob(Job["GroupProducts", DataErrors]):
    """Bars for the choice of data; its steps are those of the halves and one for each probe."""

    name = "data error"

    def __init__(self, settings: JobSettings, groups: int = GROUPS) -> None:
        """Take the settings.

        Args:
            settings: As :func:`settings_of` makes them.
            groups: Into how many groups the data are divided where they suffice, at least 2.
        """
        super().__init__(settings)
        self.groups = groups

    def config(self) -> dict[str, Any]:
        """Return what decides the job's numbers."""
        return {**super().config(), "groups": self.groups}

    def streams(self, operator: CurvatureOperator) -> StreamSizes:
        """Return sizes of one stream per block: the bases of two halves, or the products of all groups in their place.

        The products with four vectors come when the bases are gone.
        """
        sizes = super().streams(operator)
        more = max(HALVES * _STEPS, 5 * self.groups) + _WORK_VECTORS - sizes.steps
        beside = {block: more * numel * sizes.dtype.itemsize for block, numel in sizes.numel.items()}
        return replace(sizes, beside=beside, savings="")

    def start(
        self, operator: CurvatureOperator, wave: list[Stream], finished: Sequence[GroupProducts]
    ) -> GroupProducts:
        """Begin with the halves."""
        return GroupProducts(operator, [block for block, _ in wave], self.settings)

    def collect(self, operator: CurvatureOperator, states: list[GroupProducts], manifest: dict[str, Any]) -> DataErrors:
        """Make bars of what the waves found."""
        found = {block: state.forms(b) for state in states for b, block in enumerate(state.blocks)}
        ordered = {block: found[block] for block in operator.blocks}
        return DataErrors(ordered, np.array(groups_in(operator).samples), manifest)

    def load(self, run: Path) -> DataErrors:
        """Read the bars of a finished run."""
        return DataErrors.load(run)


class GroupProducts:
    """The products of one wave's blocks with the groups, as they come.

    Attributes:
        blocks: The wave's blocks.
        position: Steps done.
        consistent: False while the state must not be saved.
    """

    def __init__(self, operator: CurvatureOperator, blocks: list[str], settings: JobSettings) -> None:
        """Draw the start vectors of the halves, the same for both."""
        self.blocks = blocks
        self.position = 0
        self.consistent = True
        self._operator, self._seed = operator, settings.seed
        self._numel = {block: operator.numel[block] for block in blocks}
        count, groups = len(blocks), len(groups_in(operator).samples)
        shapes = {
            "weights": (groups,),
            "forms": (count, _PROBES, groups),
            "gram": (count, _PROBES, groups, groups),
            "quotients": (count, HALVES, ENDS, groups),
            "residuals": (count, HALVES, ENDS),
        }
        self._found = {name: torch.zeros(shape, dtype=torch.float64, device="cpu") for name, shape in shapes.items()}
        self._halved = torch.zeros(1, dtype=torch.int64, device="cpu")  # steps of the halves, once they are done
        starts = {
            _half(block, half): {0: probe(self._seed, block, 0, numel, "gaussian", operator.dtype)}
            for block, numel in self._numel.items()
            for half in range(HALVES)
        }
        lanczos = LanczosSettings(_STEPS, "full", settings.lanczos.storage)
        self._lanczos = BatchedLanczos(self._multiply_halves, starts, lanczos, operator.dtype, operator.device)

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """(blocks,): steps done by each, for progress, which counts no more than a block has parameters."""
        return np.array([min(self.position, numel) for numel in self._numel.values()])

    @property
    def left(self) -> int:
        """Steps that are left at most, of all blocks, as ``steps`` counts them."""
        return sum(min(_STEPS + _PROBES, numel) for numel in self._numel.values()) - int(self.steps.sum())

    @property
    def finished(self) -> bool:
        """Whether every probe has been multiplied."""
        return self._is_halved and self.position - int(self._halved) == _PROBES

    @property
    def scalars(self) -> Mapping[str, Tensor]:
        """What was found so far, and the coefficients of the halves."""
        return {**self._found, "halved": self._halved, **{f"lanczos_{k}": v for k, v in self._lanczos.scalars.items()}}

    @property
    def basis(self) -> Basis | None:
        """The vectors of the halves; None once they are done."""
        return None if self._is_halved else self._lanczos.basis

    def resume(self, position: int) -> None:
        """Go on from restored scalars."""
        self.position = position
        if self._is_halved:
            self._lanczos.release()
        else:
            self._lanczos.resume(position)

    def release(self) -> None:
        """Free what is held; what was found stays."""
        self._lanczos.release()
        del self._operator

    def step(self) -> int:
        """Take a step of the halves, or multiply a probe; return how many blocks of at least so many numbers there are.

        Raises:
            NotFiniteError: A product is not finite.
        """
        if self._is_halved:
            self._multiply_probe(self.position - int(self._halved))
        else:
            self._step_halves()
        self.position += 1
        return sum(numel >= self.position for numel in self._numel.values())

    def forms(self, b: int) -> GroupForms:
        """Return what was found of one block.

        Args:
            b: Its number in ``blocks``.
        """
        found = {name: value.numpy() for name, value in self._found.items()}
        arrays = (found[name][b] for name in ("forms", "gram", "quotients", "residuals"))
        return GroupForms(self._numel[self.blocks[b]], found["weights"], *arrays)

    @property
    def _is_halved(self) -> bool:
        return bool(self._halved > 0)

    def _step_halves(self) -> None:
        """Take a step of the halves, and after their last one use what they found."""
        try:
            self._lanczos.step()
        finally:
            self.consistent = self._lanczos.consistent
        if self._lanczos.finished:
            self.consistent = False
            self._multiply_extremes(self._extremes())
            self._halved += self._lanczos.position
            self.consistent = True

    def _multiply_halves(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply the vectors of each half by its own data, as Lanczos asks for."""
        of_halves = [
            {block: vectors[_half(block, half)] for block in self.blocks if _half(block, half) in vectors}
            for half in range(HALVES)
        ]
        of_group = halves(len(self._found["weights"]))
        products, weights = self._operator.sweep_apart(of_halves, lambda group: int(of_group[group]))
        refuse_weightless(weights)
        return {
            _half(block, half): product.div_(weights[half])
            for half, found in enumerate(products)
            for block, product in found.items()
        }

    def _extremes(self) -> dict[str, Tensor]:
        """Return the unit vectors that maximise and minimise each half's curvature, (halves * ends, numel) by block."""
        lanczos, found = self._lanczos, dict[str, list[Tensor]]()
        exported = lanczos.basis.export(0, int(lanczos.steps.max()))
        for s, (half, _) in enumerate(lanczos.streams):
            steps = int(lanczos.steps[s])
            off = lanczos.betas[s, : steps - 1]
            _, vectors = np.linalg.eigh(np.diag(lanczos.alphas[s, :steps]) + np.diag(off, 1) + np.diag(off, -1))
            ends = torch.from_numpy(vectors[:, [-1, 0]].T.copy())
            ritz = ends @ exported[half][0, :steps].double()
            found.setdefault(half, []).append(ritz / ritz.norm(dim=1, keepdim=True))
        lanczos.release()
        return {
            block: torch.cat([found[_half(block, half)][0] for half in range(HALVES)]).to(
                self._operator.device, self._operator.dtype
            )
            for block in self.blocks
        }

    def _multiply_extremes(self, vectors: dict[str, Tensor]) -> None:
        """Multiply the halves' extreme vectors by every group."""
        products, weights = self._apart(vectors)
        of_group = halves(len(weights))
        for b, block in enumerate(self.blocks):
            y = vectors[block].double()
            y /= y.norm(dim=1, keepdim=True)
            stacked = torch.stack([product[block] for product in products])  # (groups, halves * ends, numel)
            forms = torch.stack([(product.double() * y).sum(1) for product in stacked], dim=1)
            self._found["quotients"][b] = forms.reshape(HALVES, ENDS, -1).cpu()
            for half in range(HALVES):
                own = torch.from_numpy(np.flatnonzero(of_group == half))
                rows = slice(half * ENDS, (half + 1) * ENDS)
                weight = float(sum(weights[g] for g in own.tolist()))
                product = stacked[own.to(stacked.device), rows].double().sum(0) / weight
                theta = (product * y[rows]).sum(1, keepdim=True)
                self._found["residuals"][b, half] = (product - theta * y[rows]).norm(dim=1).cpu()

    def _multiply_probe(self, number: int) -> None:
        """Multiply one random vector per block by every group."""
        drawn = {
            block: probe(self._seed, block, number + 1, numel, "gaussian", self._operator.dtype)[None]
            for block, numel in self._numel.items()
        }
        vectors = {block: vector.to(self._operator.device) for block, vector in drawn.items()}
        products, _ = self._apart(vectors)
        for b, block in enumerate(self.blocks):
            stacked = torch.cat([product[block] for product in products]).double()  # (groups, numel)
            self._found["forms"][b, number] = (stacked @ vectors[block][0].double()).cpu()
            self._found["gram"][b, number] = (stacked @ stacked.T).cpu()

    def _apart(self, vectors: dict[str, Tensor]) -> tuple[list[dict[str, Tensor]], list[float]]:
        """Multiply the same vectors by every group."""
        groups = len(self._found["weights"])
        products, weights = self._operator.sweep_apart([vectors] * groups, lambda group: group)
        self._found["weights"].copy_(torch.tensor(weights, dtype=torch.float64))
        return products, weights


def divide(operator: CurvatureOperator, count: int = GROUPS) -> None:
    """Divide an operator's data into groups.

    Args:
        operator: What this job will run on.
        count: How many groups; fewer where the data have less to divide.

    Raises:
        ConfigurationError: There are no two groups to be had.
    """
    operator.scheduler.divide(*groups_of(operator, count))


def groups_of(operator: CurvatureOperator, count: int = GROUPS) -> tuple[Groups, int | None]:
    """Say how an operator's data divide: between batches where there are enough of them, else between samples.

    Returns:
        The groups, and the samples of the largest piece of a batch; None where no batch is cut.

    Raises:
        ConfigurationError: There are no two groups to be had.
    """
    objective = operator.objective
    if objective.data is None:
        raise ConfigurationError(
            "The error from the choice of data needs data, and the loss takes none: give loss(model, batch) and "
            "data=[...], parts of which can be compared, or data_error=False."
        )
    sizes = [batches.samples(batch) for _, batch in objective.batches()]
    known = [size for size in sizes if size is not None]
    why = "whose tensors share no leading dimension by which it could be cut"
    if len(sizes) < count and len(known) == len(sizes):
        why = "of one sample"
        if sum(known) > 1:
            groups = of_samples(known, count)
            most = _largest_piece(groups, known)
            try:
                with objective.arithmetic():
                    check_split(objective, most)
            except ConfigurationError as error:
                why = f"which cannot be cut. {error}"
            else:
                return groups, most
    if len(sizes) < 2:
        raise ConfigurationError(
            "The error from the choice of data needs two parts of the data to compare; give two batches or more, or "
            f"data_error=False. There is one batch, {why.removesuffix('.')}."
        )
    return of_whole_batches(sizes, count), None


def refuse_weightless(weights: Sequence[float]) -> None:
    """Refuse halves of the data of which one has no weight.

    Args:
        weights: Those of the halves.

    Raises:
        ConfigurationError: One is 0.
    """
    if min(weights) <= 0:
        raise ConfigurationError(WEIGHTLESS)


def _largest_piece(groups: Groups, sizes: list[int]) -> int:
    """Return the samples of the largest piece into which a batch is cut."""
    bounds = [(0, *groups.cuts(number), size) for number, size in enumerate(sizes)]
    return max(last - first for of_batch in bounds for first, last in pairwise(of_batch))


def groups_in(operator: CurvatureOperator) -> Groups:
    """Return the groups into which an operator's data were divided.

    Raises:
        ConfigurationError: They were not.
    """
    groups = operator.scheduler.groups
    if groups is None:
        raise ConfigurationError("The data of this job were not divided; call hvp_engine.jobs.data_error.divide.")
    return groups


def _half(block: str, half: int) -> str:
    """Name a half's stream of a block; what follows the block's name has one length, so that names stay distinct."""
    return f"{block} (half {half + 1} of the data)"
