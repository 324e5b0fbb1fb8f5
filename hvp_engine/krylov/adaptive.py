"""The first round of an adaptive job: one stream per block in lock step, and blocks that leave when they know enough.

A block goes through three stages. Its stream runs, and is judged at fixed steps. Once more steps are not what is
missing the stream stops, and a few single products with vectors that its basis deflates go along with the other blocks'
next sweeps. Then its Lanczos vectors are freed, and it is done. Every decision is a function of what the products gave,
and is kept in the scalars: a job that is resumed decides nothing anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hvp_engine.krylov.basis import Basis
from hvp_engine.krylov.companions import SINGLES_AT_ONCE, SingleProducts
from hvp_engine.krylov.lanczos import BatchedLanczos, Matmat
from hvp_engine.krylov.settings import LanczosSettings
from hvp_engine.krylov.stopping import CHECK_EVERY, FIRST_CHECK, Verdict
from hvp_engine.krylov.wave import Wave, WavePlan, Where
from hvp_engine.results.coefficients import Coefficients
from hvp_engine.results.smoothing import FloatArray

# Judges some of the blocks, beside all others of which something is known.
Judge = Callable[[Collection[str], Mapping[str, Coefficients], Mapping[str, FloatArray]], Mapping[str, Verdict]]


class Rule(NamedTuple):
    """How an adaptive wave decides.

    Attributes:
        judge: Says what blocks need, given what their streams have found.
        seed: Of the job, for the single products.
        noise: Relative error of one product.
    """

    judge: Judge
    seed: int
    noise: float


class AdaptiveWave(Wave):
    """One stream per block, which stop one by one.

    Attributes:
        singles: The single products.
    """

    def __init__(self, matmat: Matmat, plan: WavePlan, settings: LanczosSettings, where: Where, rule: Rule) -> None:
        """Take the start vectors.

        Args:
            matmat: Multiplies (k, numel) vectors per block.
            plan: What to find, with one start vector per block.
            settings: How to run; its steps are the most that a stream takes.
            where: What vectors are; its ``sync_every`` has to divide the steps between two checks.
            rule: How to decide.
        """
        sync_every = where.sync_every or (1 if where.device.type == "cpu" else CHECK_EVERY)
        super().__init__(matmat, plan, settings, where._replace(sync_every=sync_every))
        self._full, self._rule = settings.kept is not None, rule
        self._numel = {block: starts[0].numel() for block, starts in plan.starts.items()}
        most = settings.steps if self._full else 0
        self.singles = SingleProducts(list(self._numel), most, rule.seed, where.device)
        self._released: set[str] = set()

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """int64: products done with each stream, each block that is multiplied out, and single ones by block."""
        return np.concatenate([super().steps, self.singles.done.numpy()])

    @property
    def left(self) -> int:
        """Products that are left at most, as far as it is decided."""
        undecided = SINGLES_AT_ONCE * len(self._undecided) if self._full else 0
        return super().left + undecided + sum(map(self.singles.left, self._numel))

    @property
    def scalars(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the vectors: written to where one is restored."""
        singles = self.singles
        kept = {"singles": singles.values, "singles_wanted": singles.wanted, "singles_done": singles.done}
        return {**super().scalars, **kept}

    def resume(self, position: int) -> None:
        """Go on from restored scalars, where the live streams have done ``position`` steps."""
        super().resume(position)
        if self.lanczos is not None:
            self._free(self.lanczos.basis, self._numel)

    def coefficients(self) -> dict[str, Coefficients]:
        """Return what each block's stream has found so far."""
        lanczos = self.lanczos
        if lanczos is None:
            return {}
        alphas, betas, steps, residuals = lanczos.alphas, lanczos.betas, lanczos.steps, lanczos.residuals
        return {
            block: Coefficients(
                self._numel[block],
                alphas[s : s + 1, : steps[s]],
                betas[s : s + 1, : steps[s] - 1],
                steps[s : s + 1],
                residuals[s : s + 1],
                self._rule.noise,
                self._full,
            )
            for s, (block, _) in enumerate(lanczos.streams)
        }

    @property
    def _undecided(self) -> list[str]:
        return [block for block in self._numel if not self.singles.is_decided(block)]

    def _is_done(self, block: str) -> bool:
        return self.singles.is_decided(block) and self.singles.left(block) == 0

    def _next_company(self) -> dict[str, Tensor]:
        company = super()._next_company()
        waiting = [block for block in self._numel if self.singles.left(block)]
        if self.lanczos is not None and waiting:  # a GPU would wait for the steps
            steps = self._steps_of(self.lanczos)
            company |= {block: self.singles.vectors(block, self.lanczos.basis, steps[block]) for block in waiting}
        return company

    def _take(self, block: str, products: Tensor) -> None:
        if block in self.matrices or self.lanczos is None:
            super()._take(block, products)
            return
        newest = self.lanczos.basis.newest(self._steps_of(self.lanczos)[block] - 1, block)[0]
        self.singles.take(block, self._company[block], products, newest)

    def _decide(self) -> None:
        """Stop streams that have found enough, and free the vectors of blocks that are done."""
        lanczos = self.lanczos
        if lanczos is None or not lanczos.consistent:
            return
        self.singles.refuse_nonfinite()
        live = dict(zip(self._numel, lanczos.state.live.tolist(), strict=True))
        due = lanczos.position >= FIRST_CHECK and (lanczos.position - FIRST_CHECK) % CHECK_EVERY == 0
        asked = [block for block in self._undecided if due or not live[block]]
        # Single products say more about what the trace still needs than the stream that they came from.
        asked += [block for block in self._numel if self._is_done(block) and block not in self._released]
        if not asked:
            return
        found = self.coefficients()
        verdicts = self._rule.judge(asked, found, {block: self.singles.of(block).numpy() for block in found})
        for block in asked:
            if not live[block] or verdicts[block].steps_suffice:
                self.singles.want(block, _singles_of(found[block], verdicts[block]))
        lanczos.stop([block for block in asked if live[block] and self.singles.is_decided(block)])
        self._free(lanczos.basis, asked)

    def _free(self, basis: Basis, blocks: Iterable[str]) -> None:
        """Free the vectors of those blocks that are done."""
        for block in blocks:
            if self._is_done(block):
                basis.release(block)
                self._released.add(block)

    def _steps_of(self, lanczos: BatchedLanczos) -> dict[str, int]:
        return dict(zip(self._numel, lanczos.steps.tolist(), strict=True))


def _singles_of(found: Coefficients, verdict: Verdict) -> int:
    """Return how many single products a block gets in all: none where its stream knows everything, or all is zero.

    A sweep for less than it may carry is a sweep that costs no less.
    """
    if int(found.steps[0]) >= found.numel or verdict.zero:
        return 0
    return SINGLES_AT_ONCE * max(1, math.ceil(verdict.singles / SINGLES_AT_ONCE))
