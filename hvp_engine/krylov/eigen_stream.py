"""The eigenpairs of one block by thick-restarted Lanczos, as a machine that takes products and says what it needs next.

Lanczos with full orthogonalisation (Wu & Simon, SIAM J. Matrix Anal. Appl. 22, 2000): where the space is full, it is
rotated to the best Ritz vectors, and goes on from there. One random start vector sees one direction of every
eigenspace. So, once the wanted pairs have converged, a fresh random vector is taken into the space, and what grows from
it either brings a further copy of an eigenvalue that displaces another one, or shows that there is none: its component
along any such eigenvector would be too small for chance (:func:`hvp_engine.krylov.wanted.is_absent`), or it had as many
products as the wanted pairs took before.

In the end residuals are measured. They follow from the products that the vectors consist of; one product more, with a
random combination of all wanted vectors, confirms that. Where it does not, or the tolerance is close to rounding, every
vector is multiplied.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.krylov.probes import probe
from hvp_engine.krylov.ritz_space import Ritz, RitzSpace
from hvp_engine.krylov.storage import plain_rule
from hvp_engine.krylov.wanted import FloatArray, IntArray, Wanted, displacing, is_absent, preferred

AT_ONCE = 4  # vectors of one block that are measured in one sweep
ENDINGS = ("", "converged", "noise", "maxiter")

# What a product leaves below this many units of rounding, relative to the largest eigenvalue, is noise: the space is
# invariant.
_BREAKDOWN = 16.0
# Of the room beside the wanted vectors, the share that further Ritz vectors keep over a restart.
_KEPT = 1 / 3
# Vectors that may wait for their products; each fresh start adds one, in place of one that residuals have little of.
_WAITING = 3
_LITTLE = 0.05  # of the residual that is allowed
# Estimates below this share of a product's error say nothing of residuals.
_TRUE = 0.25
# Residuals within this many times a product's error are not for more products to improve.
_NOISE = 4.0
# A cycle that improves the worst residual by less than this has come to where it stops.
_PROGRESS = 0.5
# A random unit combination of k errors is below this share of their size, over sqrt(k), less than once in a
# hundred times, even where all vectors err in the same direction: P(|N(0, 1)| < 0.01).
_CONFIRMED = 0.01
_SOLVING, _CONFIRMING, _MEASURING, _DONE = range(4)
_MARKS = 11


class Start(NamedTuple):
    """What a stream begins with.

    Attributes:
        block: Its block.
        numel: Length of a vector.
        capacity: Most vectors.
        seed: Of the job.
        noise: Relative error of one product.
        dtype: Working dtype.
        device: Where vectors live.
    """

    block: str
    numel: int
    capacity: int
    seed: int
    noise: float
    dtype: torch.dtype
    device: torch.device


class _Mark:
    """A whole number of a stream, kept in one tensor with the others, so that a checkpoint has it."""

    def __init__(self, place: int) -> None:
        self._place = place

    def __get__(self, stream: EigenStream, owner: type) -> int:
        return int(stream.marks[self._place])

    def __set__(self, stream: EigenStream, value: int) -> None:
        stream.marks[self._place] = value


class EigenStream:
    """One block.

    Attributes:
        space: Its vectors.
        marks: (11,) int64: the whole numbers below.
        phase: What the next products are for.
        spent: Products so far.
        grown: Those of them with new vectors.
        drawn: Random vectors so far.
        chain: Products with what grew from the last random vector.
        effort: Products that the wanted pairs took when they first converged; 0 before.
        measured: Wanted vectors that were measured, in this turn.
        checked: Whether it is known that no copy of an eigenvalue is missing.
        until: Products before which convergence is not looked at, again.
        whole: Whether the space was the whole one.
        ending: What ended the stream, as a place in ``ENDINGS``.
        points: (2,) float64: where a copy of an eigenvalue would displace another one, see
            :func:`hvp_engine.krylov.wanted.displacing`, when the last random vector was taken in.
        seen: (2,) float64: the most that the squares of ``space.copies`` amounted to since then.
        size: (1,) float64: largest magnitude of an eigenvalue so far.
        worst: (1,) float64: largest residual, relative to it, when they were last measured.
        values: (k,) float64: what was measured; before that nan.
        residuals: (k,) float64: likewise.
        known: (k,) float64: the wanted values when the last random vector was taken in; nan where there were fewer.
    """

    phase, spent, drawn, chain, effort, measured, checked, until, whole, ending, grown = map(_Mark, range(_MARKS))

    def __init__(self, start: Start, wanted: Wanted) -> None:
        """Draw the first vector."""
        self.start, self.wanted = start, wanted
        self.k = wanted.of(start.numel)
        self.space = RitzSpace(start.capacity, start.numel, start.dtype, start.device)
        self.marks = torch.zeros(_MARKS, dtype=torch.int64, device="cpu")
        self.size, self.worst = torch.zeros((2, 1), dtype=torch.float64, device="cpu")
        self.worst.fill_(math.inf)
        self.values, self.residuals, self.known = torch.full((3, self.k), math.nan, dtype=torch.float64, device="cpu")
        self.points, self.seen = torch.zeros((2, 2), dtype=torch.float64, device="cpu")
        self._begin()

    @property
    def scalars(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, beside the vectors."""
        space = self.space
        return {
            "marks": self.marks,
            "size": self.size,
            "worst": self.worst,
            "values": self.values,
            "residuals": self.residuals,
            "known": self.known,
            "points": self.points,
            "seen": self.seen,
            "copies": space.copies,
            "projected": space.projected,
            "lost": space.lost,
            "labels": space.labels,
            "counts": space.counts,
        }

    @property
    def is_done(self) -> bool:
        """Whether no product is needed any more."""
        return self.phase == _DONE

    @property
    def grows(self) -> bool:
        """Whether the next product is with a new vector, which is to be made orthogonal before it is taken."""
        return self.phase == _SOLVING

    @property
    def left(self) -> int:
        """Products that are left, as far as can be said."""
        if self.is_done:
            return 0
        if self.grows:
            return 1 + self.space.capacity - self.space.count
        return 1 if self.phase == _CONFIRMING else self.k - self.measured

    @property
    def ended_by(self) -> str:
        """What ended it, one of ``ENDINGS``."""
        return ENDINGS[self.ending]

    @property
    def bound(self) -> float:
        """The residual up to which a pair has converged."""
        return self.wanted.tolerance * float(self.size)

    @property
    def reach(self) -> float:
        """The estimate up to which a pair is taken to have converged, so that it is measured."""
        floor = max(_TRUE * self.start.noise, float(torch.finfo(self.start.dtype).eps))
        return max(self.bound, floor * float(self.size))

    def asked(self) -> Tensor:
        """Return the vectors that are to be multiplied next, (r, numel)."""
        if self.grows:
            return self.space.store[self.space.count][None]
        if self.phase == _CONFIRMING:
            return self.space.combined(self._combination())[None]
        return self.space.store[self.measured : min(self.measured + AT_ONCE, self.k)]

    def grow(self, vector: Tensor, coefficients: FloatArray, norm: float) -> None:
        """Take the product with the newest vector.

        Args:
            vector: (numel,): what it has beside the space.
            coefficients: (held,): its components in the space.
            norm: Of ``vector``.
        """
        space = self.space
        space.take(coefficients)
        self.spent, self.grown = self.spent + 1, self.grown + 1
        self.size.fill_(max(float(self.size), float(np.abs(coefficients[: space.count]).max())))
        invariant = norm <= _BREAKDOWN * float(torch.finfo(self.start.dtype).eps) * float(self.size)
        follows = not (invariant or space.held == space.numel)
        self.chain += int(space.labels[space.count - 1]) == self.drawn
        if follows:
            space.append(vector, norm, self.points.numpy())
            self.seen.copy_(torch.maximum(self.seen, space.copies[: space.held].square().sum(0)))
        self.whole = int(space.count == space.numel)
        ritz = space.ritz()
        self.size.fill_(max(float(self.size), float(np.abs(ritz.values).max())))
        self._go_on(ritz, preferred(ritz.values, self.wanted.which))

    def measure(self, products: Tensor) -> None:
        """Take the product with a combination of the wanted vectors, or those with the next of them."""
        self.spent += len(products)
        if self.phase == _CONFIRMING:
            self._confirm(products[0])
            return
        first, last = self.measured, self.measured + len(products)
        quotients, residuals = self.space.measure(first, products)
        self.values[first:last] = torch.from_numpy(quotients)
        self.residuals[first:last] = torch.from_numpy(residuals)
        self.measured = last
        if last == self.k:
            self._judge()

    def _confirm(self, product: Tensor) -> None:
        """Compare a product with what it should be by those before; take the residuals from these, or measure them."""
        space, k = self.space, self.k
        error = math.sqrt(k) * space.error(self._combination(), product)  # of all pairs, as a Frobenius norm
        if error > self._allowed:
            self.phase = _MEASURING
            return
        known = space.ritz_of_rotated(k)
        self.values.copy_(torch.from_numpy(known.values))
        self.residuals.copy_(torch.from_numpy(np.hypot(known.estimates, error / math.sqrt(k))))
        self.measured = k
        self._judge()

    def _combination(self) -> FloatArray:
        """Return a random unit vector of as many numbers as pairs are wanted."""
        start = self.start
        drawn = probe(start.seed, f"{start.block}\0combination", self.drawn, self.k, "gaussian", torch.float64)
        found: FloatArray = drawn.numpy()
        return found

    @property
    def _allowed(self) -> float:
        """The error of all pairs up to which residuals are taken from the products before."""
        return _CONFIRMED * self.bound

    def release(self) -> None:
        """Keep the wanted vectors alone, or none where none were asked for."""
        self.space.store = self.space.store[: self.k if self.wanted.vectors else 0].clone()

    def _go_on(self, ritz: Ritz, order: IntArray) -> None:
        """Decide what is multiplied next, and make room for what that gives."""
        space = self.space
        converged = self._has_converged(ritz, order)
        if converged and not self.effort:
            self.effort = self.spent
        ended = self.whole or (self.grown >= self.wanted.most and space.count >= self.k)
        over = ended or (converged and self._is_complete(ritz, order))
        lacking = space.held == space.count or (converged and not self._is_known(ritz.values[order]))
        fresh = lacking and not over and space.held < space.numel  # else all that there is waits already
        if fresh and len(ritz.couplings) >= _WAITING:
            parts = np.abs(ritz.couplings[:, order[: self.k]]).max(1)
            if parts.min() > _LITTLE * self.reach:
                space.put_first(int(parts.argmin()))
                fresh = False
            else:
                space.drop(int(parts.argmin()))
                ritz = space.ritz()
        elif not over and not fresh:
            space.put_first(self._next(ritz, order, converged))
        if fresh:
            self._know(ritz.values[order])
        crowded = space.held + 1 + fresh > space.capacity and space.held < space.numel
        if over or crowded:
            self._rotate(ritz, order)
        if not self.whole and (fresh or space.held == space.count):
            self._begin()
        if over:
            self.measured = 0
            rounding = math.sqrt(self.k) * self.start.noise * float(self.size)
            self.phase = _CONFIRMING if rounding <= self._allowed else _MEASURING

    def _has_converged(self, ritz: Ritz, order: IntArray) -> bool:
        if len(order) < self.k or self.spent < self.until:
            return False
        return bool((ritz.estimates[order[: self.k]] <= self.reach).all())

    def _is_complete(self, ritz: Ritz, order: IntArray) -> bool:
        """Say whether no copy of a wanted eigenvalue is missing that would displace another one."""
        values = ritz.values[order]
        none = not np.isfinite(self._displacing(values)).any()
        if not none and not (self._is_known(values) and (self.checked or self._shows_none())):
            return False
        self._know(values)
        self.checked = 1
        return True

    def _displacing(self, values: FloatArray) -> FloatArray:
        return displacing(np.sort(values[: self.k]), self.wanted.which, self.bound)

    def _shows_none(self) -> bool:
        """Say whether what grew from the last random vector shows that no copy is missing."""
        if self.space.held == self.space.numel:
            return False  # all that there is waits, and will be multiplied
        if self.chain >= self.effort or self.drawn not in self._waiting():
            return True
        asked = self.points.isfinite()
        return all(is_absent(total, self.start.numel) for total in self.seen[asked].tolist())

    def _next(self, ritz: Ritz, order: IntArray, converged: bool) -> int:
        """Choose a waiting vector: of what grew from the last random one, or what residuals have most of."""
        waiting = self._waiting()
        if converged and self.drawn in waiting:
            return waiting.index(self.drawn)
        wanted = order[: self.k]
        late = wanted[ritz.estimates[wanted] > self.reach]
        return int(np.abs(ritz.couplings[:, late if len(late) else wanted]).max(1).argmax())

    def _waiting(self) -> list[int]:
        """Return which random vectors the waiting ones grew from."""
        found: list[int] = self.space.labels[self.space.count : self.space.held].tolist()
        return found

    def _is_known(self, values: FloatArray) -> bool:
        """Say whether the wanted values are those that there were when the last random vector was taken in."""
        if len(values) < self.k:
            return False
        apart = np.abs(np.sort(values[: self.k]) - self.known.numpy())
        return bool((apart <= self.bound).all())  # nan is not

    def _know(self, values: FloatArray) -> None:
        """Note the wanted values, the first of those given."""
        found = np.sort(values[: self.k])
        self.known.fill_(math.nan)
        self.known[: len(found)] = torch.from_numpy(found)
        self.checked = 0
        if len(found) == self.k:
            self.points.copy_(torch.from_numpy(self._displacing(found)))

    def _rotate(self, ritz: Ritz, order: IntArray) -> None:
        """Go over to the best Ritz vectors: the wanted ones, ascending, then as many others as are to be kept."""
        space = self.space
        room = 0 if self.whole else int(_KEPT * (space.capacity - self.k - len(ritz.couplings)))
        keep = min(space.count, self.k + room)
        space.rotate(ritz, np.concatenate([np.sort(order[: self.k]), order[self.k : keep]]))

    def _begin(self) -> None:
        """Take in a random unit vector that is orthogonal to all there are."""
        start, space = self.start, self.space
        vector = probe(start.seed, start.block, self.drawn, start.numel, "gaussian", start.dtype).to(start.device)
        rule = plain_rule(start.dtype)
        for _ in range(2 if space.held else 0):  # once more after it is normalised: little of it may be left
            vector.div_(reorthogonalize([space.store], [vector], [space.held], rule).norms[0])
        self.drawn, self.chain = self.drawn + 1, 0
        self.seen.fill_(1.0)
        space.start(vector, self.drawn)

    def _judge(self) -> None:
        """End, or go on where more products may lower the residuals that were measured."""
        size = max(float(self.size), float(self.values.abs().max()))
        self.size.fill_(size)
        largest, before = float(self.residuals.max()), float(self.worst)
        worst = largest / size if size else 0.0
        self.worst.fill_(worst)
        if largest <= self.bound:
            self.ending = ENDINGS.index("converged")
        elif self.grown >= self.wanted.most:
            self.ending = ENDINGS.index("maxiter")
        elif self.whole or worst <= _NOISE * self.start.noise or worst > _PROGRESS * before:
            self.ending = ENDINGS.index("noise")
        else:
            self.phase, self.until = _SOLVING, self.spent + self.space.capacity - self.space.held
            return
        self.phase = _DONE
