"""The first round of an adaptive job: one stream per block in lock step, and blocks that leave when they know enough.

A block goes through three stages. Its stream runs, and is judged at fixed steps. Once more steps are not what is
missing the stream stops, and a few single products with vectors that its basis deflates go along with the other blocks'
next sweeps. Then its Lanczos vectors are freed, and it is done. The columns of small blocks, which are multiplied out
as a whole, go along too. Every decision is a function of what the products gave, and is kept in the scalars: a job that
is resumed decides nothing anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hvp_engine.krylov.basis import Basis
from hvp_engine.krylov.companions import SINGLES_AT_ONCE, BlockMatrix, SingleProducts
from hvp_engine.krylov.lanczos import BatchedLanczos, Matmat
from hvp_engine.krylov.settings import LanczosSettings
from hvp_engine.krylov.stopping import CHECK_EVERY, FIRST_CHECK, Verdict
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.smoothing import FloatArray

# Judges some of the blocks; further ones, and their single products, may help (distances between blocks).
Judge = Callable[[Collection[str], Mapping[str, Coefficients], Mapping[str, FloatArray]], Mapping[str, Verdict]]


class WavePlan(NamedTuple):
    """What a wave is asked to find.

    Attributes:
        starts: Unit start vector (numel,) of each block's stream.
        small: Lengths of the blocks whose whole matrix is multiplied out.
        seed: Of the job.
        noise: Relative error of one product, by block.
    """

    starts: Mapping[str, Tensor]
    small: Mapping[str, int]
    seed: int
    noise: Mapping[str, float]


class AdaptiveWave:
    """The state of a wave whose blocks stop one by one.

    Attributes:
        lanczos: The streams; None where all blocks are small.
        matrices: Of the small blocks, by name.
        singles: The single products of the others.
    """

    def __init__(
        self,
        matmat: Matmat,
        plan: WavePlan,
        settings: LanczosSettings,
        judge: Judge,
        dtype: torch.dtype,
        device: torch.device,
        sync_every: int | None = None,
    ) -> None:
        """Take the start vectors.

        Args:
            matmat: Multiplies (k, numel) vectors per block.
            plan: What to find.
            settings: How to run; its steps are the most that a stream takes.
            judge: Says what blocks need, given what their streams have found.
            dtype: Working dtype.
            device: Where vectors live.
            sync_every: As for :class:`BatchedLanczos`; it has to divide the steps between two checks.
        """
        self._matmat, self._judge, self._plan = matmat, judge, plan
        self._full = settings.kept is not None
        sync_every = sync_every or (1 if device.type == "cpu" else CHECK_EVERY)
        starts = {block: {0: vector} for block, vector in plan.starts.items()}
        self.lanczos = BatchedLanczos(self._multiply, starts, settings, dtype, device, sync_every) if starts else None
        self.matrices = {block: BlockMatrix(numel, dtype, device) for block, numel in plan.small.items()}
        self.singles = SingleProducts(list(starts), settings.steps if self._full else 0, plan.seed, device)
        self._company: dict[str, Tensor] = {}  # vectors that go along with the streams, in this sweep
        self._brought: dict[str, Tensor] = {}  # their products
        self._released: set[str] = set()
        self._whole = True
        self._sweeps = 0

    @property
    def consistent(self) -> bool:
        """False while a step is being recorded and until the host has checked it."""
        return self._whole and (self.lanczos is None or self.lanczos.consistent)

    @property
    def position(self) -> int:
        """Steps done by the live streams; sweeps where there are none."""
        return self._sweeps if self.lanczos is None else self.lanczos.position

    @property
    def basis(self) -> Basis | None:
        """The Lanczos vectors."""
        return None if self.lanczos is None else self.lanczos.basis

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """(blocks,) int64: products done with each, the small ones last."""
        streams = np.zeros(0, dtype=np.int64) if self.lanczos is None else self.lanczos.steps
        columns = [int(matrix.done) for matrix in self.matrices.values()]
        return np.concatenate([streams + self.singles.done.numpy(), np.array(columns, dtype=np.int64)])

    @property
    def left(self) -> int:
        """Products that are left at most, as far as it is decided."""
        undecided = 0 if not self._full else SINGLES_AT_ONCE * len(self._undecided)
        singles = sum(self.singles.left(block) for block in self._plan.starts)
        columns = sum(matrix.left for matrix in self.matrices.values())
        return (0 if self.lanczos is None else self.lanczos.left) + undecided + singles + columns

    @property
    def finished(self) -> bool:
        """Whether no block has a product left."""
        return self.left == 0

    @property
    def scalars(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the vectors: written to where one is restored."""
        kept = {} if self.lanczos is None else self.lanczos.scalars
        kept |= {
            "singles": self.singles.values,
            "singles_wanted": self.singles.wanted,
            "singles_done": self.singles.done,
        }
        for number, matrix in enumerate(self.matrices.values()):
            kept |= {f"matrix_{number}": matrix.rows, f"columns_{number}": matrix.done}
        return kept

    def resume(self, position: int) -> None:
        """Go on from restored scalars, where the live streams have done ``position`` steps."""
        self._sweeps = position
        if self.lanczos is not None:
            self.lanczos.resume(position)
            self._free(self.lanczos.basis, self._plan.starts)

    def release(self) -> None:
        """Free the vectors of a finished wave; what was found stays."""
        if self.lanczos is not None:
            self.lanczos.release()

    def step(self) -> int:
        """Take one sweep; return how many products it gave.

        Raises:
            NotFiniteError: A product is not finite; said when the host synchronises.
        """
        self._company = self._next_company()
        if self.lanczos is None or self.lanczos.finished:
            taken = 0
            self._multiply({})
        else:
            taken = self.lanczos.step()
        for block, products in self._brought.items():
            self._take(block, self._company[block], products)
        taken += sum(map(len, self._brought.values()))
        self._sweeps += 1
        if self.lanczos is not None and self.lanczos.consistent:
            self._decide(self.lanczos)
        self._company, self._brought, self._whole = {}, {}, True
        return taken

    def coefficients(self) -> dict[str, Coefficients]:
        """Return what each block's stream has found so far."""
        lanczos = self.lanczos
        if lanczos is None:
            return {}
        alphas, betas, steps, residuals = lanczos.alphas, lanczos.betas, lanczos.steps, lanczos.residuals
        return {
            block: Coefficients(
                self._plan.starts[block].numel(),
                alphas[s : s + 1, : steps[s]],
                betas[s : s + 1, : steps[s] - 1],
                steps[s : s + 1],
                residuals[s : s + 1],
                self._plan.noise.get(block, 0.0),
                self._full,
            )
            for s, (block, _) in enumerate(lanczos.streams)
        }

    @property
    def _undecided(self) -> list[str]:
        return [block for block in self._plan.starts if not self.singles.is_decided(block)]

    def _is_done(self, block: str) -> bool:
        return self.singles.is_decided(block) and self.singles.left(block) == 0

    def _multiply(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply the streams' newest vectors, and those that go along, in one sweep."""
        products = self._matmat({**vectors, **self._company})
        self._whole = False  # from here on the streams and their company are apart
        self._brought = {block: products.pop(block) for block in self._company}
        return products

    def _next_company(self) -> dict[str, Tensor]:
        company = {block: matrix.vectors() for block, matrix in self.matrices.items() if matrix.left}
        if self.lanczos is not None:
            steps = self._steps_of(self.lanczos)
            for block in self._plan.starts:
                if self.singles.left(block):
                    company[block] = self.singles.vectors(block, self.lanczos.basis, steps[block])
        return company

    def _take(self, block: str, vectors: Tensor, products: Tensor) -> None:
        if block in self.matrices:
            self.matrices[block].take(products)
        elif self.lanczos is not None:
            newest = self.lanczos.basis.newest(self._steps_of(self.lanczos)[block] - 1, block)[0]
            self.singles.take(block, vectors, products, newest)

    def _decide(self, lanczos: BatchedLanczos) -> None:
        """Stop streams that have found enough, and free the vectors of blocks that are done."""
        self.singles.refuse_nonfinite()
        position, undecided = lanczos.position, self._undecided
        live = dict(zip(self._plan.starts, lanczos.state.live.tolist(), strict=True))
        due = position >= FIRST_CHECK and (position - FIRST_CHECK) % CHECK_EVERY == 0
        asked = [block for block in undecided if due or not live[block]]
        # Single products say more about what the trace still needs than the stream that they came from.
        asked += [block for block in self._plan.starts if self._is_done(block) and block not in self._released]
        if not asked:
            return
        found = self.coefficients()
        verdicts = self._judge(asked, found, {block: self.singles.of(block).numpy() for block in found})
        for block in asked:
            if not live[block] or verdicts[block].steps_suffice:
                self.singles.want(block, self._singles_of(found[block], verdicts[block]))
        lanczos.stop([block for block in asked if live[block] and self.singles.is_decided(block)])
        self._free(lanczos.basis, asked)

    def _free(self, basis: Basis, blocks: Iterable[str]) -> None:
        """Free the vectors of those blocks that are done."""
        for block in blocks:
            if self._is_done(block):
                basis.release(block)
                self._released.add(block)

    def _singles_of(self, found: Coefficients, verdict: Verdict) -> int:
        """Return how many single products a block gets in all: none where its stream knows everything."""
        if int(found.steps[0]) >= found.numel or not found.alphas.any():
            return 0
        return max(SINGLES_AT_ONCE, verdict.singles)

    def _steps_of(self, lanczos: BatchedLanczos) -> dict[str, int]:
        return dict(zip(self._plan.starts, lanczos.steps.tolist(), strict=True))
