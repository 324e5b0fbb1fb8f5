"""A job of a few numbers, quick enough to be killed at every single operation on its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.jobs.checkpoint import Checkpoint, sweep_finished
from hvp_engine.krylov.basis import BlockShape, Layout
from hvp_engine.krylov.storage import RoundedBasis
from hvp_engine.system.run_files import is_finished, read_manifest, write_run

STEPS = 4
WAVES = [[("a", 0), ("a", 1)], [("b", 0)]]


class Counting:
    """Streams whose every step depends on the vectors and scalars of all steps before it."""

    def __init__(self, wave: int) -> None:
        streams = len(WAVES[wave])
        shapes = {"x": BlockShape(streams, STEPS, 3)}
        self.basis = RoundedBasis(Layout(shapes, torch.float32, torch.bfloat16, torch.device("cpu")))
        self.sums = torch.zeros(streams, STEPS, dtype=torch.float64)
        self.taken = 0
        self._slots = [("x", row) for row in range(streams)]
        for slot in self._slots:
            self.basis.append(0, slot, torch.full((3,), 1.1 + wave + slot[1]))
        self.resume(0)

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        return np.full(len(self._slots), self.position)

    @property
    def finished(self) -> bool:
        return self.position == STEPS

    @property
    def scalars(self) -> Mapping[str, Tensor]:
        return {"sums": self.sums}

    def resume(self, position: int) -> None:
        self.position = position

    def step(self) -> None:
        j, self.taken = self.position, self.taken + 1
        newest = self.basis.newest(j, "x").clone()
        self.sums[:, j] = self.basis._store["x"][:, : j + 1].double().sum((1, 2)) + self.sums[:, :j].sum(1)
        if j + 1 < STEPS:
            for slot, vector in zip(self._slots, newest, strict=True):
                self.basis.append(j + 1, slot, torch.sin(vector) * 1.7 + j)
        self.position = j + 1


def count(run: Path, seed: int = 0, saves: tuple[int, ...] = (1, 2, 3)) -> tuple[list[float], int]:
    """Run the job with a checkpoint after some steps, as the runner does; return its numbers and the steps taken."""
    identity = {"seed": seed, "loss": 0.1}
    taken = 0
    if is_finished(run):
        sweep_finished(run, identity)
        return read_manifest(run)["values"], taken
    with Checkpoint(run, identity) as checkpoint:
        states = []
        for number in range(len(checkpoint.waves(WAVES))):
            state = Counting(number)
            checkpoint.restore(number, state)
            while not state.finished:
                state.step()
                if state.position in saves:
                    checkpoint.save(number, state)
            checkpoint.finish(number, state)
            taken += state.taken
            states.append(state)
        values = [seed + x for state in states for x in state.sums.flatten().tolist()]
        checkpoint.complete(lambda run: write_run(run, {"values": values, "identity": identity}))
    return read_manifest(run)["values"], taken
