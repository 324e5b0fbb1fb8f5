"""Lanczos on many streams in lock step (Golub & Van Loan, Matrix Computations, 10.3; Parlett, ch. 13).

A stream is one (block, probe) pair. One step multiplies every live stream's newest vector by its Hessian block in one
sweep, orthogonalises the products against the streams' own bases, twice, in one call, and ends the streams whose Krylov
space is exhausted. Scalars are float64 whatever the vectors are, and stay on the vectors' device: on a GPU the host
looks at them every few steps only, and enqueues the steps between without waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.errors import ObjectiveError
from hvp_engine.kernels.lanczos_step import LanczosState, NewVector, Step, record_step
from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.krylov.basis import Basis
from hvp_engine.krylov.settings import LanczosSettings

Matmat = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
Stream = tuple[str, int]

# A residual below this many units of rounding, relative to ||T||, is noise of the product: the space is exhausted.
_BREAKDOWN = 16.0
# Steps between two looks where looking means waiting for the device. A stream that ended between them multiplies zeros.
_LOOK_EVERY = 8

Place = tuple[str, int, int]  # block, row among the block's live streams, row in the block's basis


class BatchedLanczos:
    """The state of all streams of one wave.

    Attributes:
        streams: The (block, probe) pairs, grouped by block.
        state: The scalars, on the vectors' device.
        consistent: False while a step is being recorded and until the host has looked at it; such a state must not be
            saved.
        position: Steps done by the live streams.
    """

    def __init__(
        self,
        matmat: Matmat,
        starts: Mapping[str, Mapping[int, Tensor]],
        settings: LanczosSettings,
        dtype: torch.dtype,
        device: torch.device,
        look_every: int | None = None,
    ) -> None:
        """Take the start vectors.

        Args:
            matmat: Multiplies (k, numel) vectors per block.
            starts: Unit start vectors (numel,) by block and probe number.
            settings: How to run.
            dtype: Working dtype.
            device: Where vectors live.
            look_every: Steps between two looks of the host at what ended or failed; None takes 1 on the CPU and a few
                elsewhere. It changes no result.
        """
        self._matmat = matmat
        self._settings = settings
        self._tolerance = _BREAKDOWN * float(torch.finfo(dtype).eps)
        self._look_every = look_every or (1 if device.type == "cpu" else _LOOK_EVERY)
        self.streams: list[Stream] = [(block, number) for block, probes in starts.items() for number in probes]
        self.consistent = True
        self.bases: dict[str, Basis] = {}
        self._members: dict[str, list[int]] = {}
        for s, (block, _) in enumerate(self.streams):
            self._members.setdefault(block, []).append(s)
        lengths: list[int] = []
        for block, probes in starts.items():
            numel = next(iter(probes.values())).numel()
            capacity = min(settings.steps, numel)
            basis = Basis(len(probes), capacity, numel, dtype, settings.store_dtype, device)
            for row, start in enumerate(probes.values()):
                basis.put(0, row, start.to(device, dtype))
            self.bases[block] = basis
            lengths += [capacity] * len(probes)
        self._last = np.array(lengths)
        self.state = _initial_state(self._last, settings.steps, device)
        self.resume(0)

    @property
    def alphas(self) -> npt.NDArray[np.float64]:
        """(streams, steps) float64."""
        return self.state.alphas.numpy(force=True)

    @property
    def betas(self) -> npt.NDArray[np.float64]:
        """(streams, steps) float64; ``betas[s, j]`` couples vectors j and j + 1."""
        return self.state.betas.numpy(force=True)

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """(streams,) int64: steps done."""
        return self.state.steps.numpy(force=True)

    @property
    def lost(self) -> npt.NDArray[np.float64]:
        """(streams,) float64: largest cosine between a new vector and its basis found by the second pass."""
        return self.state.lost.numpy(force=True)

    @property
    def finished(self) -> bool:
        """Whether no stream has a step left."""
        return not self._active.any()

    def resume(self, position: int) -> None:
        """Go on from ``state``, where the live streams have done ``position`` steps."""
        self.position = self._seen = position
        self._active = self.state.live.numpy(force=True).copy()

    def step(self) -> int:
        """Advance every live stream by one step; returns how many streams took part.

        Raises:
            ObjectiveError: A product is not finite; said when the host looks, which may be a few steps later.
        """
        j = self.position
        rows = {b: [r for r, s in enumerate(m) if self._active[s]] for b, m in self._members.items()}
        rows = {block: live for block, live in rows.items() if live}
        products = self._matmat({b: self._newest(b, live) for b, live in rows.items()})
        order = [(block, i, row) for block, live in rows.items() for i, row in enumerate(live)]
        vectors = [products[block][i] for block, i, _ in order]
        step = self._orthogonalise(order, vectors)
        active = self._active & (self._last > j + 1)
        looking = (j + 1) % self._look_every == 0 or not active.any()
        if looking:
            self._refuse_nonfinite(step)
        self.consistent = False
        record_step(self.state, step, self._next_vectors(order, vectors))
        if looking:
            active &= self.state.live.numpy(force=True)
            self._seen = j + 1
        self._active, self.position = active, j + 1
        self.consistent = looking
        return len(order)

    def release(self) -> None:
        """Free the vectors of a finished wave; the scalars stay."""
        self.bases.clear()

    def orthogonality(self) -> dict[Stream, float]:
        """||Q'Q - I|| of every stream's stored basis."""
        return {
            self.streams[s]: self.bases[block].orthogonality(row, int(self.steps[s]))
            for block, members in self._members.items()
            for row, s in enumerate(members)
        }

    def _newest(self, block: str, rows: list[int]) -> Tensor:
        newest = self.bases[block].get(self.position)
        # Not newest[rows]: a GPU would wait while the list of indices is copied to it.
        return newest if len(rows) == newest.shape[0] else torch.stack([newest[row] for row in rows])

    def _next_vectors(self, order: list[Place], vectors: list[Tensor]) -> list[NewVector]:
        """The orthogonalised products of the streams that have room for another vector, and where they go."""
        j = self.position + 1
        return [
            NewVector(index, vectors[index], *self.bases[block].rows(j, row))
            for index, (block, _, row) in enumerate(order)
            if j < self._last[self._members[block][row]]
        ]

    def _orthogonalise(self, order: list[Place], vectors: list[Tensor]) -> Step:
        """Orthogonalise products in place; returns each stream's alpha, beta and lost orthogonality."""
        j = self.position
        bases = [self.bases[block] for block, _, _ in order]
        stores = [b.store[row] for b, (_, _, row) in zip(bases, order, strict=True) if b.store is not None]
        windows = [b.window[row] for b, (_, _, row) in zip(bases, order, strict=True) if b.window is not None]
        if not windows:
            done = reorthogonalize(stores, vectors, [j + 1] * len(vectors))
            alphas, lost = done.coefficients[:, j], done.lost
        else:
            # The unrounded window first: it takes out the large components alpha and beta. What the rounded older
            # vectors take out afterwards is small, so that their rounding is multiplied by something small.
            done = reorthogonalize(windows, vectors, [min(j + 1, 2)] * len(vectors))
            alphas, lost = done.coefficients[:, j % 2], done.lost
            if stores:
                done = reorthogonalize(stores, vectors, [max(0, j - 1)] * len(vectors))
                lost = torch.maximum(lost, done.lost)
        members = [self._members[block][row] for block, _, row in order]
        return Step(members, j, alphas, done.norms, lost, self._tolerance)

    def _refuse_nonfinite(self, step: Step) -> None:
        """Raise for the first product since the last look that was not finite."""
        since, j = self._seen, self.position
        earlier = self.state.alphas[:, since:j].isfinite() & self.state.betas[:, since:j].isfinite()
        now = step.alphas.isfinite() & step.betas.isfinite()
        if bool(earlier.all() & now.all()):
            return
        if not earlier.all():
            found = np.argwhere(~earlier.numpy(force=True))
            s, position = min(found, key=lambda pair: (pair[1], pair[0]))
            position += since
        else:
            s, position = step.members[int(np.argmin(now.numpy(force=True)))], j
        block, number = self.streams[s]
        raise ObjectiveError(
            f"The Hessian-vector product of block {block!r} (probe {number}) is not finite at step {position}: an "
            "operation's second derivative is infinite or not a number there (sqrt or norm at zero, log of zero), or "
            "the arithmetic overflows; try precision='fp64', or add a small epsilon to the operation."
        )


def _initial_state(last: npt.NDArray[np.int64], steps: int, device: torch.device) -> LanczosState:
    streams = len(last)
    alphas, betas = torch.zeros((2, streams, steps), dtype=torch.float64, device=device)
    lost, norms = torch.zeros((2, streams), dtype=torch.float64, device=device)
    done = torch.zeros(streams, dtype=torch.int64, device=device)
    live = torch.ones(streams, dtype=torch.bool, device=device)
    return LanczosState(alphas, betas, done, live, lost, norms, torch.from_numpy(last).to(device))
