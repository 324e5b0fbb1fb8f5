"""A second kind of job, as small as one can be: traces by Hutchinson's estimator. The runner must serve it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.jobs.runner import Job
from hvp_engine.krylov.lanczos import Stream
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.settings import JobSettings
from hvp_engine.operators.operator import CurvatureOperator
from hvp_engine.system.run_files import read_manifest, write_run


class Squares:
    """v'Hv of every stream, one block per step, so that there is something to interrupt."""

    consistent = True
    basis = None

    def __init__(self, operator: CurvatureOperator, wave: list[Stream], settings: JobSettings) -> None:
        self._operator, self._settings, self.streams = operator, settings, wave
        self._blocks = list(dict.fromkeys(block for block, _ in wave))
        self._values = torch.zeros(len(wave), dtype=torch.float64)
        self.position = 0

    @property
    def scalars(self) -> Mapping[str, Tensor]:
        return {"values": self._values}

    @property
    def finished(self) -> bool:
        return self.position == len(self._blocks)

    @property
    def left(self) -> int:
        return len(self.streams) - int(self.steps.sum())

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        done = set(self._blocks[: self.position])
        return np.array([int(block in done) for block, _ in self.streams])

    def resume(self, position: int) -> None:
        self.position = position

    def release(self) -> None:
        del self._operator

    def step(self) -> int:
        block = self._blocks[self.position]
        members = [s for s, (name, _) in enumerate(self.streams) if name == block]
        numel, dtype = self._operator.numel[block], self._operator.dtype
        probes = [probe(self._settings.seed, block, self.streams[s][1], numel, "rademacher", dtype) for s in members]
        vectors = torch.stack(probes)
        products = self._operator.sweep({block: vectors})[block]
        self._values[members] = numel * (vectors.double() * products.double()).sum(1)
        self.position += 1
        return len(members)


@dataclass
class Traces:
    """Estimates per block and probe."""

    values: dict[str, list[float]]
    manifest: dict[str, Any]

    def save(self, run: Path) -> None:
        write_run(run, {"run": self.manifest, "values": self.values})


class TraceJob(Job[Squares, Traces]):
    name = "trace"

    def start(self, operator: CurvatureOperator, wave: list[Stream], finished: Sequence[Squares]) -> Squares:
        return Squares(operator, wave, self.settings)

    def collect(self, operator: CurvatureOperator, states: list[Squares], manifest: dict[str, Any]) -> Traces:
        values: dict[str, list[float]] = {}
        for state in states:
            for (block, _), value in zip(state.streams, state.scalars["values"].tolist(), strict=True):
                values.setdefault(block, []).append(value)
        return Traces(values, manifest)

    def load(self, run: Path) -> Traces:
        document = read_manifest(run)
        return Traces(document["values"], document["run"])
