"""Jobs that multiply random vectors: which sampler a block gets, and a wave of them in the same sweeps.

All blocks of a wave are in lock step, a batch of vectors of each per sweep. With a tolerance a block leaves the sweeps
where the bar is small enough; it is looked at after every batch, of which each is half as large as all before it.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.jobs.resumable import SavedVectors
from hvp_engine.jobs.runner import Job, ResultT
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.krylov.range_sketch import RangeSampler
from hvp_engine.krylov.sampling import BATCH, FEWEST, PlainSampler, Sampled, Sampler, WholeSampler
from hvp_engine.krylov.settings import JobSettings, whole_number
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.scheduling.waves import StreamSizes
from hvp_engine.system.formatting import first_names

log = logging.getLogger(__name__)

Method = Literal["xtrace", "hutchinson"]
CEILING = 200  # products per block where their number is left open
TOLERANCE = 0.05  # where neither is given
_FEWEST_PRODUCTS = 2 * FEWEST  # two for each random vector that is left out in turn
_SMALL = 64  # parameters of a block that is multiplied out where few products may do
_EXPECTED = 64  # products that a block takes about, where their number is left open
_MOST_PRODUCTS = 100_000


@dataclass(frozen=True)
class Sampling:
    """How much to sample, and how.

    Attributes:
        products: Products per block; with a tolerance the most of them. A number once this is made.
        tolerance: Half-width of the 95 % bar at which a block is done, relative to the value; None takes all products.
        method: ``"xtrace"`` (leave-one-out) or ``"hutchinson"``.

    Raises:
        ConfigurationError: One of them is none of its values.
    """

    products: int | None = None
    tolerance: float | None = None
    method: Method = "xtrace"

    def __post_init__(self) -> None:
        """Check them, and fill in what was left open."""
        if self.products is None:
            object.__setattr__(self, "tolerance", TOLERANCE if self.tolerance is None else self.tolerance)
        products = CEILING if self.products is None else whole_number("products", self.products, _FEWEST_PRODUCTS)
        object.__setattr__(self, "products", products)
        if products > _MOST_PRODUCTS:
            raise ConfigurationError(f"products={products!r} is more than {_MOST_PRODUCTS:,}; hundreds are enough.")
        if self.method not in get_args(Method):
            raise ConfigurationError(f"method={self.method!r} is neither 'xtrace' nor 'hutchinson'.")
        tolerance = self.tolerance
        if tolerance is not None and not (isinstance(tolerance, (int, float)) and 0.0 < tolerance < math.inf):
            raise ConfigurationError(
                f"tolerance={tolerance!r} must be a number above 0: half the width of the 95 % bar, as a share of the "
                "value, for instance 0.01."
            )

    @property
    def ceiling(self) -> int:
        """The most products of a block."""
        assert self.products is not None  # filled in when it was made
        return self.products

    def kind(self, numel: int) -> type[Sampler]:
        """Choose what samples a block: small ones are multiplied out, without error and for no more products."""
        if numel <= (self.ceiling if self.tolerance is None else min(_SMALL, self.ceiling)):
            return WholeSampler
        return RangeSampler if self.method == "xtrace" else PlainSampler

    def probes(self, numel: int) -> int:
        """Return the most random vectors of a block."""
        return self.ceiling if self.method == "hutchinson" else min(self.ceiling // 2, numel)

    def bytes_of(self, numel: int, itemsize: int, *, diagonal: bool, norm: bool) -> int:
        """Return what the vectors of a block take.

        Args:
            numel: Its parameters.
            itemsize: Bytes of a number.
            diagonal: Whether its diagonal is wanted: a mean, a variance, a sample and a temporary in float64 beside.
            norm: Whether its norm is.
        """
        kind, batch = self.kind(numel), 2 * BATCH
        held = {WholeSampler: numel, PlainSampler: 0}.get(kind, self.probes(numel) * (1 + (diagonal or norm)))
        return (held + (32 if kind is WholeSampler else batch)) * numel * itemsize + (4 if diagonal else 2) * 8 * numel


class SampledWave:
    """The samplers of one wave, by block.

    Attributes:
        position: Sweeps done.
        consistent: False while products are being recorded.
    """

    def __init__(
        self,
        operator: CurvatureOperator,
        samplers: dict[str, Sampler],
        error: Callable[[Sampler], float] | None,
        tolerance: float,
    ) -> None:
        """Take the samplers.

        Args:
            operator: What they multiply with.
            samplers: By block.
            error: Gives a sampler's error, relative to the value; None where all products are taken.
            tolerance: Which error is small enough.
        """
        self.samplers, self.position, self.consistent = samplers, 0, True
        self._operator, self._error, self._tolerance = operator, error, tolerance

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """(blocks,): products done."""
        return np.array([sampler.done for sampler in self.samplers.values()], dtype=np.int64)

    @property
    def left(self) -> int:
        """Products that are left at most."""
        return sum(sampler.left for sampler in self.samplers.values())

    @property
    def finished(self) -> bool:
        """Whether no block has a product left."""
        return self.left == 0

    @property
    def scalars(self) -> Mapping[str, Tensor]:
        """What a checkpoint keeps beside the vectors."""
        return {f"{b}_{key}": v for b, s in enumerate(self.samplers.values()) for key, v in s.tensors.items()}

    @property
    def basis(self) -> SavedVectors:
        """The vectors, as a checkpoint takes them."""
        return KeptVectors(list(self.samplers.values()))

    def resume(self, position: int) -> None:
        """Go on from restored tensors."""
        self.position = position

    def release(self) -> None:
        """Free the vectors of a finished wave."""
        for sampler in self.samplers.values():
            sampler.release()
        del self._operator

    def step(self) -> int:
        """Multiply what is next of every block, and stop those that have enough; return the number of products.

        Raises:
            NotFiniteError: A product is not finite.
        """
        vectors = {block: sampler.vectors() for block, sampler in self.samplers.items() if sampler.left}
        products = self._operator.sweep(vectors)
        self.consistent = False
        for block, of_block in products.items():
            sampler = self.samplers[block]
            sampler.take(vectors[block], of_block)
            if sampler.complete and (self._error is not None or not sampler.left):
                sampler.look()
                if self._error is not None and self._error(sampler) <= self._tolerance:
                    sampler.stop()
        self.position += 1
        self.consistent = True
        return sum(map(len, vectors.values()))


class KeptVectors:
    """The vectors of some samplers; they are written anew with every checkpoint, for each may have other ones."""

    keeps_all = False
    corrects_newest = False

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        """Take the samplers."""
        self._samplers = samplers

    def export(self, first: int, last: int) -> dict[str, Tensor]:
        """Return nothing: no vectors are written once."""
        return {}

    def restore(self, first: int, last: int, exported: Mapping[str, Tensor]) -> None:
        """Take back nothing."""

    def export_window(self) -> dict[str, Tensor]:
        """Return the vectors on the CPU."""
        return {key: vectors.cpu() for key, vectors in self._kept().items()}

    def restore_window(self, exported: Mapping[str, Tensor]) -> None:
        """Take the vectors back."""
        for key, vectors in self._kept().items():
            vectors.copy_(exported[key])

    def _kept(self) -> dict[str, Tensor]:
        return {f"{b}/{key}": v for b, sampler in enumerate(self._samplers) for key, v in sampler.kept.items()}


class SampledJob(Job[SampledWave, ResultT]):
    """What jobs of random vectors share.

    Attributes:
        diagonal: Whether the diagonal is wanted.
        norm: Whether the Frobenius norm is wanted.
    """

    diagonal = False
    norm = False

    def __init__(self, settings: JobSettings, sampling: Sampling) -> None:
        """Take what was asked for.

        Args:
            settings: Arithmetic, seed and the like; steps and probes are of no account.
            sampling: How much, and how.
        """
        super().__init__(replace(settings, steps=sampling.ceiling, probes=1, tolerance=None))
        self.sampling = sampling

    @abstractmethod
    def error(self, sampler: Sampler) -> float:
        """Return the half-width of the 95 % bar that decides, relative to the value."""

    def config(self) -> dict[str, Any]:
        """Return what decides the job's numbers."""
        kept = ("seed", "precision", "head_curvature", "head_curvature_tolerance")
        record = super().config()
        sampling = self.sampling
        # Not "products": an identity has those of a few vectors by that name, as evidence that is compared to rounding.
        how = {"most_products": sampling.ceiling, "method": sampling.method}
        wanted = {} if sampling.tolerance is None else {"tolerance": sampling.tolerance}
        return {**how, **wanted, **{key: record[key] for key in kept}}

    def products(self, operator: CurvatureOperator) -> dict[str, int]:
        """Return about how many products of each block the job will ask for."""
        most = self.sampling.ceiling if self.sampling.tolerance is None else min(self.sampling.ceiling, _EXPECTED)
        return {block: min(most, numel) for block, numel in operator.numel.items()}

    def streams(self, operator: CurvatureOperator) -> StreamSizes:
        """Return sizes of one stream per block that make room for what its sampler holds."""
        numel, sampling = operator.numel, self.sampling
        savings = "" if sampling.method == "hutchinson" else "fewer products, method='hutchinson', "
        plain = StreamSizes(numel, sampling.ceiling, 1, operator.dtype, None, savings=savings)
        need = {
            block: sampling.bytes_of(size, operator.dtype.itemsize, diagonal=self.diagonal, norm=self.norm)
            for block, size in numel.items()
        }
        return replace(plain, beside={block: max(0, need[block] - plain.bytes_of(block)) for block in numel})

    def start(self, operator: CurvatureOperator, wave: list[Stream], finished: Sequence[SampledWave]) -> SampledWave:
        """Begin with no product."""
        sampling, samplers = self.sampling, dict[str, Sampler]()
        for block, _ in wave:
            numel = operator.numel[block]
            of = Sampled(
                block=block,
                numel=numel,
                most=sampling.probes(numel),
                seed=self.settings.seed,
                diagonal=self.diagonal,
                norm=self.norm,
                noise=self.noise,
                dtype=operator.dtype,
                device=operator.device,
            )
            samplers[block] = sampling.kind(numel)(of)
        tolerance = sampling.tolerance
        return SampledWave(operator, samplers, None if tolerance is None else self.error, tolerance or 0.0)

    def ordered(self, operator: CurvatureOperator, states: Sequence[SampledWave]) -> dict[str, Sampler]:
        """Return the samplers of all waves, in block order."""
        found = {block: sampler for state in states for block, sampler in state.samplers.items()}
        return {block: found[block] for block in operator.blocks}

    def account(self, samplers: Mapping[str, Sampler], notes: Sequence[str]) -> dict[str, Any]:
        """Say what every block took, and what was not reached, as the manifest has it.

        Args:
            samplers: By block.
            notes: What the manifest says already.
        """
        tolerance = self.sampling.tolerance
        missed = [] if tolerance is None else [b for b, s in samplers.items() if not self.error(s) <= tolerance]
        facts: dict[str, Any] = {
            "sampling": {b: {"method": s.method, "products": s.done} for b, s in samplers.items()},
            "not_reached": missed,
        }
        if missed:
            words = (
                f"The tolerance {tolerance:g} was not reached in {len(missed)} of {len(samplers)} blocks "
                f"({first_names(missed)}). The bars say what was; raise products=, or ask for a larger tolerance."
            )
            log.warning("%s", words)
            notes = [*notes, words]
        return {**facts, "notes": list(notes)}
