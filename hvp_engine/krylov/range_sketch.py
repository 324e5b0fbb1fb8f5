"""Products with random vectors, and with an orthonormal basis of these products: for estimates that leave one out.

The basis Q grows by a batch at a time, in two sweeps: random vectors first, whose products are made orthogonal to Q,
then what is new in Q. Its vectors are kept in the working dtype, all small matrices in float64; random vectors are
drawn again where they are needed, and products of Q are kept where the norm or the diagonal is wanted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hvp_engine.kernels.reorthogonalize import reorthogonalize
from hvp_engine.krylov.sampling import BATCH, PIECE, Sampled, Sampler, add_sample, batch
from hvp_engine.results import leave_one_out
from hvp_engine.results.estimate import Estimate
from hvp_engine.results.leave_one_out import Compressed, left_out

# What a product has outside of Q is rounding below this many units of rounding, or errors of a product.
_ROUNDING, _ERRORS = 16.0, 4.0


class RangeSampler(Sampler):
    """XTrace's and XDiag's products of one block (Epperly, Tropp & Webber, SIAM J. Matrix Anal. Appl. 45, 2024)."""

    method = "xtrace"

    def __init__(self, of: Sampled) -> None:
        """Allocate."""
        super().__init__(of)
        most = of.most
        self._keeps_products = of.norm or of.diagonal
        self._basis: Tensor | None = torch.empty(most, of.numel, dtype=of.dtype, device=of.device)
        self._products: Tensor | None = torch.empty_like(self._basis) if self._keeps_products else None
        self._multiplied = torch.zeros(1, dtype=torch.int64, device="cpu")
        self._exhausted = torch.full((1,), math.nan, dtype=torch.float64, device="cpu")
        self._small = torch.zeros(4, most, most, dtype=torch.float64, device="cpu")
        self._factor, self._overlaps, self._matrix, self._square = self._small
        self._tolerance = max(_ROUNDING * float(torch.finfo(of.dtype).eps), _ERRORS * of.noise)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Counts and small matrices."""
        own = {"small": self._small, "multiplied": self._multiplied, "exhausted": self._exhausted}
        return {**super().tensors, **own}

    @property
    def kept(self) -> dict[str, Tensor]:
        """The basis, and its products."""
        if self._basis is None or self.left == 0:
            return {}
        kept = {"basis": self._basis[: self.probes]}
        return kept if self._products is None else {**kept, "products": self._products[: int(self._multiplied)]}

    @property
    def left(self) -> int:
        """Products that are left at most."""
        waiting = self.probes - int(self._multiplied)
        more = 0 if self.stopped or self._is_whole else self.of.most - self.probes
        return waiting + 2 * more

    @property
    def complete(self) -> bool:
        """Whether the whole basis was multiplied, and is enough for an estimate."""
        return self.probes == int(self._multiplied) and (self.probes > 1 or self._is_whole)

    @property
    def _is_whole(self) -> bool:
        return not bool(self._exhausted.isnan()) or self.probes == self.of.numel

    def vectors(self) -> Tensor:
        """Return what is new in the basis, or the next random vectors."""
        basis, first = self._vectors, self.probes
        if first > int(self._multiplied):
            return basis[int(self._multiplied) : first]
        count = min(batch(first), self.of.most - first)
        return torch.stack([self.of.vector(first + i) for i in range(count)])

    def take(self, vectors: Tensor, products: Tensor) -> None:
        """Record products of the basis, or extend it by those of random vectors."""
        if self.probes > int(self._multiplied):
            self._compress(products)
        else:
            self._extend(products)
        self.counts[1] += len(products)

    def look(self) -> None:
        """Find the overlaps of the basis with the random vectors, and the diagonal where it is wanted."""
        count, basis, length = self.probes, self._vectors, math.sqrt(self.of.numel)
        for first in range(0, count, BATCH):
            drawn = torch.stack([self.of.vector(i) for i in range(first, min(first + BATCH, count))])
            self._overlaps[:count, first : first + len(drawn)] = length * gram(basis[:count], drawn)
        if self.of.diagonal:
            self._find_diagonal()

    def trace(self) -> Estimate:
        """Estimate the trace."""
        return leave_one_out.trace(self._found())

    def square(self) -> Estimate:
        """Estimate the trace of the square."""
        return leave_one_out.square(self._found())

    def norm(self) -> float:
        """Return the Frobenius norm, about."""
        return leave_one_out.norm(self._found())

    def _found(self) -> Compressed:
        factor, overlaps, matrix, square = self._small[:, : self.probes, : self.probes].numpy()
        kept, of = square if self._keeps_products else None, self.of
        return Compressed(of.numel, factor, overlaps, matrix, kept, float(self._exhausted), of.noise)

    def _find_diagonal(self) -> None:
        """Estimate the diagonal with each vector left out: XDiag, of a symmetric matrix and vectors of signs.

        The others give ``diag(P_i A) + w_i * (A - P_i A) w_i``, and both of what one vector changes are multiples of
        its direction: the estimate is ``diag(Q Z') + x_i * (c_i w_i - Z s_i)``, with ``x_i = Q s_i``, Z = AQ, and c_i
        what its product has along x_i.
        """
        basis, products, count = self._vectors, self._products, self.probes
        assert products is not None
        found = self._found()
        self.variances.zero_()
        if not found.whole:
            left = left_out(found.factor, found.overlaps, self.of.numel)
            length = math.sqrt(self.of.numel)
            directions = torch.from_numpy(left.directions.copy()).to(basis.device)
            for i in range(count):
                along = combined(directions[:, i], basis[:count])
                sample = self.of.vector(i).double().mul_(float(left.reached[i]) * length)
                sample.sub_(combined(directions[:, i], products[:count])).mul_(along)
                add_sample(self.variances, sample.cpu(), i)
            self.variances[1] *= leave_one_out.SHARED_BY_ENTRIES / (count * (count - 1))
        for first in range(0, self.of.numel, PIECE):
            piece = slice(first, first + PIECE)
            inside = (basis[:count, piece].double() * products[:count, piece].double()).sum(0)
            self.variances[0, piece] += inside.cpu()

    def release(self) -> None:
        """Free the vectors."""
        self._basis = self._products = None

    @property
    def _vectors(self) -> Tensor:
        assert self._basis is not None  # a finished wave's are gone, and nobody multiplies them
        return self._basis

    def _extend(self, products: Tensor) -> None:
        """Make products orthogonal to the basis, and take what they have outside of it into it."""
        basis, length = self._vectors, math.sqrt(self.of.numel)
        for product in products:
            count = self.probes
            whole = product.double().norm()
            done = reorthogonalize([basis], [product], [count])
            self.of.refuse_nonfinite(done.norms, whole)
            outside = float(done.norms[0])
            if outside <= self._tolerance * float(whole):
                self._exhausted[0] = length * outside
                return
            basis[count] = product / outside
            self._factor[:count, count] = length * done.coefficients[0, :count].cpu()
            self._factor[count, count] = length * outside
            self.counts[0] += 1

    def _compress(self, products: Tensor) -> None:
        """Record what products of the newest vectors of the basis have along it."""
        first, count = int(self._multiplied), self.probes
        along = gram(products, self._vectors[:count])  # (new, count)
        self.of.refuse_nonfinite(along)
        _put_symmetric(self._matrix, along, first, count)
        if self._products is not None:
            self._products[first:count] = products
            _put_symmetric(self._square, gram(products, self._products[:count]), first, count)
        self._multiplied[0] = count


def gram(left: Tensor, right: Tensor) -> Tensor:
    """Return all dot products of some rows with others, float64 on the CPU, widened a piece at a time."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    for a, b in zip(torch.split(left, PIECE, dim=1), torch.split(right, PIECE, dim=1), strict=True):
        total += a.double() @ b.double().T
    return total.cpu()


def combined(coefficients: Tensor, rows: Tensor) -> Tensor:
    """Return a combination of rows, (numel,) float64, widened a piece at a time."""
    return torch.cat([coefficients @ piece.double() for piece in torch.split(rows, PIECE, dim=1)])


def _put_symmetric(matrix: Tensor, rows: Tensor, first: int, count: int) -> None:
    """Write new rows of a symmetric matrix and the columns that they are; what both give is averaged."""
    matrix[first:count, :count] = rows
    matrix[:count, first:count] = rows.T
    corner = matrix[first:count, first:count]
    corner.copy_((corner + corner.T) / 2)
