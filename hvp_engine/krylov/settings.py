"""What a job was asked for, checked once: one frozen object that engine, planner and command line share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from operator import index
from typing import Any, Literal, get_args

import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.krylov.probes import Distribution, check_distribution
from hvp_engine.krylov.registry import AUTO, STORAGES, Storage
from hvp_engine.krylov.stopping import DEFAULT_TOLERANCE, Targets
from hvp_engine.ops.head.dropping import check_tolerance
from hvp_engine.problem.precision import Precision, check_precision, working_dtype
from hvp_engine.system.formatting import shorten

Reorthogonalize = Literal["full", "selective", "none"]
# The error of an average falls with the root of their number; more than this is a slip, and lists of streams would take
# minutes and gigabytes before it shows.
_MOST_PROBES = 100_000
_MOST_STEPS = 10_000_000  # the same of these
_MOST_BYTES = 1 << 62  # of a budget
_SHOWN = 40  # letters of a number that is too large
_STEPS, _PROBES = 100, 10  # where one of them is not given: what a fixed job takes, and no adaptive one exceeds


@dataclass(frozen=True)
class LanczosSettings:
    """How to run the recurrence.

    Attributes:
        steps: Largest number of steps.
        reorthogonalize: ``"full"`` against the whole basis, ``"selective"`` only where the estimated loss of
            orthogonality asks for it, or ``"none"`` (the last two vectors only).
        storage: How the basis is stored, unless it is ``"none"``.
        noise: Relative error of one product, which estimates start from.
    """

    steps: int
    reorthogonalize: Reorthogonalize
    storage: Storage
    noise: float = 0.0

    @property
    def kept(self) -> Storage | None:
        """How the basis is stored; None where only the newest two vectors are."""
        return None if self.reorthogonalize == "none" else self.storage

    def with_noise(self, noise: float) -> LanczosSettings:
        """Return these settings for products of a known error."""
        return replace(self, noise=noise)


@dataclass(frozen=True)
class JobSettings:
    """What a job of Lanczos runs was asked for; :func:`hvp_engine.slq` says what each setting means.

    A job is fixed where steps or probes are given without a tolerance: it takes exactly these. Any other is adaptive:
    it stops where its tolerance is reached, and takes no more than these.

    Attributes:
        steps: Lanczos steps of a fixed job, or the ceiling of an adaptive one; a number once this is made.
        probes: Streams per block, likewise.
        tolerance: What an adaptive job has to reach, a number by the name of its target; None for a fixed job.
        first_probe: Number of a fixed job's first probe: jobs of other probes of the same blocks can be joined.

    Raises:
        ConfigurationError: A setting is none of its values.
    """

    steps: int = None  # type: ignore[assignment]  # a number once it is made
    probes: int = None  # type: ignore[assignment]
    tolerance: float | Mapping[str, float] | None = None
    seed: int = 0
    distribution: Distribution = "gaussian"
    precision: Precision = "fp32"
    reorthogonalize: Reorthogonalize = "full"
    basis: str = "fp32"
    microbatch: int | None = None
    memory: int | None = None
    head_curvature: bool = True
    head_curvature_tolerance: float = 0.0
    check: bool = True
    first_probe: int = 0

    def __post_init__(self) -> None:
        """Check every setting; whole numbers of numpy and torch become plain ones."""
        fixed = self.tolerance is None and not (self.steps is None and self.probes is None)
        if not fixed:
            given = DEFAULT_TOLERANCE if self.tolerance is None else self.tolerance
            object.__setattr__(self, "tolerance", Targets.parse(given).record())
        whole_numbers = {
            "steps": _STEPS if self.steps is None else whole_number("steps", self.steps, 1),
            "probes": _PROBES if self.probes is None else whole_number("probes", self.probes, 1),
            "seed": whole_number("seed", self.seed),
            "first_probe": whole_number("first_probe", self.first_probe, 0),
        }
        for name, value in whole_numbers.items():
            object.__setattr__(self, name, value)
        if self.probes > _MOST_PROBES:
            raise ConfigurationError(
                f"probes={self.probes!r} is more than {_MOST_PROBES:,}; tens to hundreds are enough."
            )
        if self.steps > _MOST_STEPS:
            raise ConfigurationError(
                f"steps={self.steps!r} is more than {_MOST_STEPS:,}; tens to thousands are enough."
            )
        if self.first_probe and not fixed:
            raise ConfigurationError(
                f"first_probe={self.first_probe!r} goes with a fixed number of probes only, and a job with a tolerance "
                "finds out how many it takes; give steps or probes, and no tolerance."
            )
        if self.reorthogonalize not in get_args(Reorthogonalize):
            raise ConfigurationError(
                f"reorthogonalize={self.reorthogonalize!r} is not one of 'full', 'selective', 'none'."
            )
        if self.basis not in (AUTO, *STORAGES):
            raise ConfigurationError(f"basis={self.basis!r} is not one of {', '.join(map(repr, (AUTO, *STORAGES)))}.")
        check_precision(self.precision)
        check_distribution(self.distribution)
        check_tolerance(self.head_curvature_tolerance)
        object.__setattr__(self, "microbatch", checked_microbatch(self.microbatch))
        check_memory(self.memory)

    @property
    def targets(self) -> Targets | None:
        """What an adaptive job has to reach; None for a fixed job."""
        return None if self.tolerance is None else Targets.parse(self.tolerance)

    def check_blocks(self, blocks: int) -> None:
        """Refuse a target between blocks where there are not two.

        Raises:
            ConfigurationError: There are not.
        """
        if self.targets is not None:
            self.targets.check_blocks(blocks)

    @property
    def lanczos(self) -> LanczosSettings:
        """The recurrence's settings; products in float64 keep float64 vectors.

        Raises:
            ConfigurationError: How vectors are kept is not decided yet.
        """
        if self.basis == AUTO:
            raise ConfigurationError("basis='auto' is not decided yet; hvp_engine.jobs.runner.run decides it.")
        storage = STORAGES[self.basis]
        storage = storage.beside_fp64() if self.precision == "fp64" else storage
        return LanczosSettings(self.steps, self.reorthogonalize, storage)

    @property
    def numbers(self) -> range:
        """Numbers of a fixed job's probes."""
        return range(self.first_probe, self.first_probe + self.probes)

    @property
    def dtype(self) -> torch.dtype:
        """Working dtype of vectors and products."""
        return working_dtype(self.precision)

    def _stored(self) -> str:
        """Name how vectors are stored: "auto", by the dtype of a plain tensor, or by the storage's own name."""
        if self.basis == AUTO:
            return AUTO
        storage = self.lanczos.storage
        return str(storage.dtype).removeprefix("torch.") if storage.kind is None else self.basis

    def products(self, numel: Mapping[str, int]) -> dict[str, int]:
        """Count the products of every block: streams of blocks smaller than the steps end earlier.

        Args:
            numel: Length of each block's vectors.
        """
        return {block: self.probes * min(self.steps, size) for block, size in numel.items()}

    def record(self) -> dict[str, Any]:
        """Return what decides a job's numbers, as plain data.

        A fixed job has no word of tolerance, and one that begins with probe 0 none of that: earlier releases had none.
        """
        return {
            **({} if self.tolerance is None else {"tolerance": self.tolerance}),
            "steps": self.steps,
            "probes": self.probes,
            **({"first_probe": self.first_probe} if self.first_probe else {}),
            "seed": self.seed,
            "distribution": self.distribution,
            "precision": self.precision,
            "reorthogonalize": self.reorthogonalize,
            "basis": self._stored(),
            "head_curvature": self.head_curvature,
            "head_curvature_tolerance": self.head_curvature_tolerance,
        }


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return an argument as an int; whole numbers of numpy and torch will do.

    Raises:
        ConfigurationError: It is no whole number, or less than ``least``, or more than ``most``.
    """
    try:
        number = index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or (least is not None and number < least):
        bound = "" if least is None else f" of at least {least}"
        raise ConfigurationError(f"{name}={value!r} must be a whole number{bound}.")
    if most is not None and number > most:
        raise ConfigurationError(f"{name}={shorten(repr(value), _SHOWN)} must be at most {most:,}.")
    return int(number)


def checked_microbatch(microbatch: int | None) -> int | None:
    """Return samples per micro-batch as an int; None leaves the choice.

    Raises:
        ConfigurationError: It is no whole number of at least 1.
    """
    return None if microbatch is None else whole_number("microbatch", microbatch, 1)


def check_memory(memory: float | None) -> None:
    """Refuse a budget that is no number of bytes above 0.

    Raises:
        ConfigurationError: It is none.
    """
    known = isinstance(memory, (int, float, Integral)) and not isinstance(memory, bool) and 0 < memory <= _MOST_BYTES
    if memory is not None and not known:
        raise ConfigurationError(f"memory={memory!r} must be a positive number of bytes.")
