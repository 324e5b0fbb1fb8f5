"""Lanczos on many streams in lock step (Golub & Van Loan, Matrix Computations, 10.3; Parlett, ch. 13).

A stream is one (block, probe) pair. One step multiplies every live stream's newest vector by its Hessian block in one
sweep, orthogonalises the products against the streams' own bases, twice, in one call, and ends the streams whose Krylov
space is exhausted. Scalars are float64 whatever the vectors are, and stay on the vectors' device: on a GPU the host
reads them every few steps only, and enqueues the steps between without waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError, NotFiniteError, not_finite
from hvp_engine.kernels.lanczos_step import record_step
from hvp_engine.kernels.streams import LanczosState, NewVector, Step
from hvp_engine.krylov.basis import Basis, BlockShape, Layout, Orthogonalized
from hvp_engine.krylov.registry import storage_for
from hvp_engine.krylov.selective import Selection
from hvp_engine.krylov.settings import LanczosSettings

Matmat = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
Stream = tuple[str, int]

# A residual below this many units of rounding, relative to ||T||, is noise of the product: the space is exhausted.
_BREAKDOWN = 16.0
# Steps between two synchronisations of the host with a device that computes beside it. A stream that ended between
# them multiplies zeros.
_SYNC_EVERY = 8


class BatchedLanczos:
    """The state of all streams of one wave.

    Attributes:
        streams: The (block, probe) pairs, grouped by block.
        state: The scalars, on the vectors' device.
        consistent: False while a step is being recorded and until the host has checked it; such a state must not be
            saved.
        position: Steps done by the live streams, and the position of the newest vectors.
    """

    def __init__(
        self,
        matmat: Matmat,
        starts: Mapping[str, Mapping[int, Tensor]],
        settings: LanczosSettings,
        dtype: torch.dtype,
        device: torch.device,
        sync_every: int | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        """Take the start vectors.

        Args:
            matmat: Multiplies (k, numel) vectors per block.
            starts: Unit start vectors (numel,) by block and probe number.
            settings: How to run.
            dtype: Working dtype.
            device: Where vectors live.
            sync_every: Steps between two synchronisations, at which the host sees which streams ended or failed; None
                takes 1 on the CPU and a few elsewhere. It changes no result.
            limits: Largest number of steps by block, where that is less than the settings allow.
        """
        self._matmat = matmat
        self._tolerance = _BREAKDOWN * float(torch.finfo(dtype).eps)
        self._sync_every = sync_every or (1 if device.type == "cpu" else _SYNC_EVERY)
        self.streams: list[Stream] = [(block, number) for block, probes in starts.items() for number in probes]
        self.consistent = True
        self._slots = [(block, row) for block, probes in starts.items() for row in range(len(probes))]
        most = {block: min(settings.steps, (limits or {}).get(block, settings.steps)) for block in starts}
        shapes = {block: _shape(probes, most[block]) for block, probes in starts.items()}
        kept = settings.kept
        store_dtype = None if kept is None else kept.dtype
        self._basis: Basis | None = storage_for(dtype, kept)(Layout(shapes, dtype, store_dtype, device))
        for slot, (block, number) in zip(self._slots, self.streams, strict=True):
            self.basis.append(0, slot, starts[block][number].to(device, dtype))
        self._last = np.array([shapes[block].capacity for block, _ in self.streams])
        # Steps that find everything; without reorthogonalisation no number of them does.
        self._whole = np.array([np.inf if kept is None else shapes[block].numel for block, _ in self.streams])
        self._keeps_residuals = torch.ones(1, dtype=torch.float64, device="cpu")  # nan: restored, and not known
        self.state = _initial_state(self._last, settings.steps, device)
        self._selection: Selection | None = None
        if settings.reorthogonalize == "selective":
            eps = float(torch.finfo(dtype).eps)
            self._selection = Selection(len(self.streams), settings.steps, eps, settings.noise)
        self.resume(0)

    @property
    def alphas(self) -> npt.NDArray[np.float64]:
        """(streams, steps) float64."""
        return self.state.alphas.numpy(force=True)

    @property
    def betas(self) -> npt.NDArray[np.float64]:
        """(streams, steps) float64; ``betas[s, j]`` couples vectors j and j + 1, or is what the last step left."""
        return self.state.betas.numpy(force=True)

    @property
    def residuals(self) -> npt.NDArray[np.float64]:
        """(streams,) float64: norm of what each stream's last step left; 0 where its Krylov space is exhausted.

        A stream that was kept orthogonal for as many steps as its block has parameters has found everything: what it
        left is rounding. nan where an earlier version took the last step, which did not keep it.
        """
        steps = self.steps
        left = self.betas[np.arange(len(steps)), np.maximum(steps, 1) - 1]
        unknown = (left == 0.0) & (steps == self._last) & bool(self._keeps_residuals.isnan())
        return np.where(steps >= self._whole, 0.0, np.where(unknown, np.nan, left))

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """(streams,) int64: steps done."""
        return self.state.steps.numpy(force=True)

    @property
    def orthogonality_loss(self) -> npt.NDArray[np.float64]:
        """(streams,) float64: largest cosine between a new vector and its basis found by the second pass."""
        return self.state.lost.numpy(force=True)

    @property
    def basis(self) -> Basis:
        """The Lanczos vectors.

        Raises:
            ConfigurationError: They were released.
        """
        if self._basis is None:
            raise ConfigurationError("The Lanczos vectors of a finished wave were released; look at them before.")
        return self._basis

    @property
    def scalars(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of the state: written to where one is restored. Last steps follow from the job."""
        kept = {name: value for name, value in self.state._asdict().items() if name != "last"}
        if self._selection is not None:
            kept["left"] = self._selection.left
        return {**kept, "keeps_residuals": self._keeps_residuals}

    @property
    def basis_reads(self) -> float:
        """Share of the steps, of all streams together, that took components along the whole basis out.

        It is 1 where every step measures them, and 0 where the basis is not kept.
        """
        if self._selection is None:
            return float(np.isfinite(self._whole).all())
        return float((self._selection.left > 0.0).sum()) / max(1, int(self.steps.sum()))

    @property
    def finished(self) -> bool:
        """Whether no stream has a step left."""
        return not self._active.any()

    def resume(self, position: int) -> None:
        """Go on from ``state``, where the live streams have done ``position`` steps."""
        self.position = self._checked = position
        self._active = self.state.live.numpy(force=True).copy()
        if self._selection is not None and position > 0 and self._basis is not None:
            self._selection.resume(self._basis, position, self.alphas, self.betas, self.steps)

    def step(self) -> int:
        """Advance every live stream by one step; return how many streams took part.

        Raises:
            NotFiniteError: A product is not finite; said when the host synchronises, which may be a few steps later.
        """
        j = self.position
        members = [s for s, active in enumerate(self._active) if active]
        vectors = self._products(members)
        slots = [self._slots[s] for s in members]
        if self._selection is None:
            found = self.basis.project(j, slots, vectors)
        else:
            found = self._selection.project(self.basis, j, members, slots, vectors)
        active = self._active & (self._last > j + 1)
        synchronises = (j + 1) % self._sync_every == 0 or not active.any()
        if synchronises:
            self._refuse_nonfinite(members, found)
        self.consistent = False
        step = Step(members, j, found.alphas, found.betas, found.loss, self._tolerance)
        record_step(self.state, step, self._next_vectors(members, vectors))
        if synchronises:
            active &= self.state.live.numpy(force=True)
            self._checked = j + 1
        self._active, self.position = active, j + 1
        self.consistent = synchronises
        return len(members)

    def stop(self, blocks: Collection[str]) -> None:
        """End the streams of some blocks where they are; call where the host has just synchronised."""
        rows = [s for s, (block, _) in enumerate(self.streams) if block in blocks]
        self.state.live[rows] = False
        self._active[rows] = False

    @property
    def left(self) -> int:
        """Steps that the live streams may still take, all of them together."""
        return int((self._last[self._active] - self.position).sum())

    def release(self) -> None:
        """Free the vectors of a finished wave; the scalars stay."""
        self._basis = None

    def orthogonality(self) -> dict[Stream, float]:
        """Return ||Q'Q - I|| of every stream's stored basis."""
        return {
            stream: self.basis.orthogonality(slot, int(steps))
            for stream, slot, steps in zip(self.streams, self._slots, self.steps, strict=True)
        }

    def _products(self, members: list[int]) -> list[Tensor]:
        """Multiply the newest vectors of some streams; return the products in the same order."""
        rows: dict[str, list[int]] = {}
        for block, row in (self._slots[s] for s in members):
            rows.setdefault(block, []).append(row)
        products = self._matmat({block: self._newest(block, live) for block, live in rows.items()})
        return [products[block][i] for block, live in rows.items() for i in range(len(live))]

    def _newest(self, block: str, rows: list[int]) -> Tensor:
        newest = self.basis.newest(self.position, block)
        # Not newest[rows]: a GPU would wait while the list of indices is copied to it.
        return newest if len(rows) == newest.shape[0] else torch.stack([newest[row] for row in rows])

    def _next_vectors(self, members: list[int], vectors: list[Tensor]) -> list[NewVector]:
        """Say where the orthogonalised products go, of the streams that have room for another vector."""
        j = self.position + 1
        growing = [index for index, s in enumerate(members) if j < self._last[s]]
        targets = self.basis.targets(j, [self._slots[members[index]] for index in growing])
        return [NewVector(index, vectors[index], *target) for index, target in zip(growing, targets, strict=True)]

    def _refuse_nonfinite(self, members: list[int], found: Orthogonalized) -> None:
        """Raise for the first product since the last synchronisation that was not finite."""
        since, j = self._checked, self.position
        earlier = self.state.alphas[:, since:j].isfinite() & self.state.betas[:, since:j].isfinite()
        now = found.alphas.isfinite() & found.betas.isfinite()
        if bool(earlier.all() & now.all()):
            return
        if not earlier.all():
            failed = np.argwhere(~earlier.numpy(force=True))
            s, position = min(failed, key=lambda pair: (pair[1], pair[0]))
            position += since
        else:
            s, position = members[int(np.argmin(now.numpy(force=True)))], j
        block, number = self.streams[s]
        raise NotFiniteError(not_finite(f"of block {block!r} (probe {number})", f" at step {position}"))


def _shape(probes: Mapping[int, Tensor], steps: int) -> BlockShape:
    numel = next(iter(probes.values())).numel()
    return BlockShape(len(probes), min(steps, numel), numel)


def _initial_state(last: npt.NDArray[np.int64], steps: int, device: torch.device) -> LanczosState:
    streams = len(last)
    alphas, betas = torch.zeros((2, streams, steps), dtype=torch.float64, device=device)
    lost, norms = torch.zeros((2, streams), dtype=torch.float64, device=device)
    done = torch.zeros(streams, dtype=torch.int64, device=device)
    live = torch.ones(streams, dtype=torch.bool, device=device)
    return LanczosState(alphas, betas, done, live, lost, norms, torch.from_numpy(last).to(device))
