"""What the processes of the tests do: jobs on small models, and what goes wrong in one of them."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from problems import CASES, Case
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import hvp_engine as he
from hvp_engine.jobs import checkpoint
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.ops.head.curvature import head_cost
from hvp_engine.processes.joining import joined
from hvp_engine.scheduling import policy

Numbers = dict[str, dict[str, np.ndarray]]
OPTIONS = {"steps": 6, "probes": 3, "check": False, "precision": "fp64", "progress": False}


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def numbers(spectra: he.Spectra) -> Numbers:
    return {
        name: {key: np.asarray(getattr(found, key)) for key in ("alphas", "betas", "steps", "nodes", "weights")}
        for name, found in spectra.items()
    }


def job(
    case: str,
    distributed: str | Mapping[str, int] | None,
    *,
    blocks: Any = "module",
    every: float = 1e9,
    **options: Any,
) -> dict[str, Any]:
    """Compute the spectra of a small model: the numbers, the manifest, and the steps that were taken here."""
    made = CASES[case]()
    checkpoint._EVERY = every
    steps = _counted()
    spectra = _slq(made, distributed, blocks, options)
    return {"numbers": numbers(spectra), "manifest": spectra.manifest, "steps": len(steps)}


def two_jobs(case: str, distributed: Mapping[str, int]) -> list[Numbers]:
    """Compute the same twice in the same processes."""
    return [numbers(_slq(CASES[case](), distributed, "module", {})) for _ in range(2)]


def _slq(made: Case, distributed: Any, blocks: Any, options: dict[str, Any]) -> he.Spectra:
    return he.slq(made.model, made.loss, blocks, data=made.data, distributed=distributed, **{**OPTIONS, **options})


def _counted() -> list[int]:
    """Count the steps that are taken from here on."""
    steps: list[int] = []
    plain = BatchedLanczos.step

    def step(state: BatchedLanczos) -> int:
        steps.append(state.position)
        return plain(state)

    BatchedLanczos.step = step  # type: ignore[method-assign]
    return steps


def with_head(case: str, distributed: Any, *, place: str, **options: Any) -> dict[str, Any]:
    """Do a job in which the curvature of the head is formed, in memory or on the disk."""
    policy.head_cost = lambda *a, **k: replace(head_cost(*a, **k), form_flop=-1e30)  # type: ignore[assignment]
    if place == "disk":
        policy.MEMORY_SHARE, policy.DISK_SHARE = 0.0, 1e9
    return job(case, distributed, blocks=["wte.weight", "ln_f.weight"], **options)


def with_bars(case: str, distributed: Any, **options: Any) -> dict[str, Any]:
    """Do a job with bars for the choice of data."""
    spectra = _slq(CASES[case](), distributed, "module", {**options, "data_error": True})
    assert spectra.data_error is not None
    bars = {name: (found.trace.value, found.trace.stderr) for name, found in spectra.data_error.items()}
    return {"numbers": numbers(spectra), "bars": bars}


def killed(case: str, distributed: Mapping[str, int], *, who: int, at: int, **options: Any) -> dict[str, Any]:
    """Do a job, of which one process is killed before a step."""
    plain = BatchedLanczos.step

    def step(state: BatchedLanczos) -> int:
        if rank() == who and state.position == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(state)

    BatchedLanczos.step = step  # type: ignore[method-assign]
    return job(case, distributed, **options)


def killed_after(
    case: str, distributed: Mapping[str, int], *, who: int, seconds: float, **options: Any
) -> dict[str, Any]:
    """Do a job, of which one process is killed after some time, wherever it is then."""
    if rank() == who:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return job(case, distributed, **options)


def failing(case: str, distributed: Any, *, who: int) -> dict[str, Any]:
    """Do a job whose loss fails in one process."""
    made = CASES[case]()
    plain, calls = made.loss, []

    def loss(model: nn.Module, batch: Any) -> Any:
        calls.append(1)
        if rank() == who and len(calls) > 12:
            raise ArithmeticError("the loss had enough")
        return plain(model, batch)

    return {"numbers": numbers(_slq(Case(made.model, loss, made.data), distributed, "module", {"microbatch": 1}))}


def other_weights(case: str) -> Numbers:
    made = CASES[case]()
    next(made.model.parameters()).data.add_(0.01 * rank())
    return numbers(_slq(made, "auto", "module", {}))


def other_data(case: str) -> Numbers:
    made = CASES[case]()
    return numbers(_slq(Case(made.model, made.loss, made.data[rank() :]), "auto", "module", {}))


def other_settings(case: str) -> Numbers:
    return numbers(_slq(CASES[case](), "auto", "module", {"seed": rank()}))


def other_folders(case: str, out: str, only_first: bool) -> Numbers:
    mine = f"{out}{'' if only_first else rank()}"
    return numbers(_slq(CASES[case](), "auto", "module", {"out": None if only_first and rank() else mine}))


def wrapped(case: str) -> Numbers:
    """Give the model as a training script has it."""
    torch.distributed.init_process_group("gloo")
    made = CASES[case]()
    model = DistributedDataParallel(made.model)
    found = numbers(he.slq(model, made.loss, "module", data=made.data, distributed={"data": 2}, **OPTIONS))
    torch.distributed.destroy_process_group()
    return found


def sums(shape: list[int], axes: Mapping[str, int]) -> tuple[Tensor, Tensor, list[float]]:
    """Add numbers up that every process draws for itself: its own, the sums, and the sums of two floats."""
    generator = torch.Generator().manual_seed(rank())
    mine = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-3, 4, shape, generator=generator)
    with joined(axes, torch.device("cpu")) as team:
        assert team.asked is not None
        team.arrange(team.asked)
        total = mine.clone()
        other = torch.full((3,), float(rank()), dtype=torch.float64)
        numbers_of_all = team.add_up({"a": total, "b": other}, [0.1 * rank(), 1.0])
        assert other.tolist() == [float(sum(team.of_group(range(team.size), team.group)))] * 3
    return mine, total, numbers_of_all


def agreement() -> list[Any]:
    """Agree, and hear of each other."""
    with joined("auto", torch.device("cpu")) as team:
        level = logging.getLogger("hvp_engine").isEnabledFor(logging.ERROR)
        return [
            team.from_first(lambda: f"said by {team.rank}"),
            team.gathered(team.rank),
            team.least(5 - team.rank),
            level,
        ]


def first_fails() -> None:
    """Fail in the first process, in what it does for all."""

    def fail() -> None:
        raise he.HvpEngineError("The first one cannot.")

    with joined("auto", torch.device("cpu")) as team:
        team.from_first(fail)
