"""The jobs of the campaigns, what a child process does of them, and when its numbers are right."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from forks import Server

import hvp_engine as he
from hvp_engine.jobs import checkpoint
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.operators.head import shelf
from hvp_engine.ops.head.curvature import head_cost
from hvp_engine.scheduling import policy

BLOCKS = ["wte.weight", "ln_f.weight"]
CLEAN = ["manifest.json", "spectra.safetensors"]
ARRAYS = ("alphas", "betas", "nodes", "weights", "steps")

Numbers = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class JobKind:
    """A job of a campaign.

    Attributes:
        options: Of :func:`children.job`.
        head: Where the head's curvature must go, "memory" or "disk"; None leaves the choice to the product.
        waves: Whether the streams must run in several waves.
    """

    options: dict[str, Any] = field(default_factory=dict)
    head: str | None = None
    waves: bool = False


def _kind(case: str, blocks: Any, *, head: str | None = None, waves: bool = False, **options: Any) -> JobKind:
    return JobKind({"case": case, "blocks": blocks, "head_curvature": head is not None, **options}, head, waves)


KINDS = {
    "mlp": _kind("mlp", None, check=True),
    "mlp in waves": _kind("mlp", "parameter", memory=8000, waves=True),
    "mlp in fp64": _kind("mlp", "parameter", precision="fp64", check=True, microbatch=2),
    "mlp with two vectors": _kind("mlp", None, precision="fp64", reorthogonalize="none", steps=20),
    "mlp in bf16": _kind("mlp", "module", precision="bf16", basis="bf16", distribution="gaussian"),
    "cnn": _kind("cnn", "parameter", check=True, basis="bf16"),
    "cnn with two vectors": _kind("cnn", None, reorthogonalize="none"),
    "gpt in waves": _kind("gpt", "module", basis="bf16", memory=160_000, waves=True, steps=5),
    "gpt": _kind("gpt", None, check=True),
    "head in memory": _kind("gpt", BLOCKS, head="memory", check=True),
    "head in memory, bf16": _kind("gpt", BLOCKS, head="memory", precision="bf16", basis="bf16"),
    "head in memory, classes dropped": _kind("gpt", BLOCKS, head="memory", head_curvature_tolerance=0.1, microbatch=1),
    "head on disk": _kind("gpt", BLOCKS, head="disk", microbatch=1, check=True),
    "head on disk, fp64": _kind("gpt", ["ln_f.weight"], head="disk", precision="fp64"),
}


def with_seed(kind: JobKind, seed: int) -> JobKind:
    """The same job with other probes: other numbers in a folder of the same form."""
    return replace(kind, options={**kind.options, "seed": seed})


def perform(out: str | None, kind: dict[str, Any], every: float = 0.0, file_limit: int | None = None) -> dict[str, Any]:
    """Run a job in this process, a child: its numbers, its manifest, and the steps that it took here.

    Args:
        out: The run folder.
        kind: A `JobKind` as a dictionary.
        every: Seconds between checkpoints.
        file_limit: The most bytes that a file may have.
    """
    import children

    checkpoint._EVERY = shelf._EVERY = every
    if kind["head"] is not None:
        policy.head_cost = lambda *a, **k: replace(head_cost(*a, **k), form_flop=-1e30)  # type: ignore[assignment]
    if kind["head"] == "disk":
        policy.MEMORY_SHARE, policy.DISK_SHARE = 0.0, 1e9
    original, steps = BatchedLanczos.step, 0

    def step(state: BatchedLanczos) -> int:
        nonlocal steps
        steps += 1
        return original(state)

    BatchedLanczos.step = step  # type: ignore[method-assign]
    with files_of_at_most(file_limit):
        spectra = children.job(None if out is None else Path(out), **kind["options"])
    return {"numbers": numbers(spectra), "plan": spectra.manifest["plan"], "steps": steps}


@contextmanager
def files_of_at_most(size: int | None) -> Iterator[None]:
    """Let the system refuse to make a file larger than ``size`` bytes."""
    most, allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if size is None else size, allowed))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, allowed))


def numbers(spectra: he.Spectra) -> Numbers:
    return {name: {array: np.asarray(getattr(found, array)) for array in ARRAYS} for name, found in spectra.items()}


def same_bits(first: Numbers, second: Numbers) -> bool:
    def alike(name: str, array: str) -> bool:
        one, other = first[name][array], second[name][array]
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()

    return first.keys() == second.keys() and all(alike(name, array) for name in first for array in ARRAYS)


class Referee:
    """Knows what every job must give, from a child that nobody disturbed."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known: dict[str, dict[str, Any]] = {}

    def wanted(self, kind: JobKind) -> dict[str, Any]:
        """What :func:`perform` must return."""
        if (key := repr(kind)) not in self._known:
            self._known[key] = self._compute(kind)
        return self._known[key]

    def _compute(self, kind: JobKind) -> dict[str, Any]:
        outcome = self._server.run("campaign:perform", out=None, kind=asdict(kind))
        assert outcome.value is not None, outcome
        plan = outcome.value["plan"]
        assert (plan["waves"] > 1) == kind.waves, plan
        assert kind.head is None or kind.head in plan["head_curvature"], plan
        return dict(outcome.value)
