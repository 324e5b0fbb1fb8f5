"""Orthonormal vectors of one block, the matrix projected onto them, and their rotation to Ritz vectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hvp_engine.krylov.wanted import FloatArray, IntArray

_COLUMNS = 1 << 14  # widened to fp64 at a time


class Ritz(NamedTuple):
    """Eigenpairs of a projected matrix.

    Attributes:
        values: (count,) ascending.
        weights: (count, count): column i are the coefficients of Ritz vector i.
        couplings: (waiting, count): components of Ritz vector i's product along the waiting vectors.
        estimates: (count,): norms of the residuals, but for rounding and the error of products.
    """

    values: FloatArray
    weights: FloatArray
    couplings: FloatArray
    estimates: FloatArray


class RitzSpace:
    """Orthonormal vectors of one block: those that were multiplied, then those that wait for it.

    What a product has beside all of them becomes another waiting vector. So the residual of a Ritz vector lies in the
    waiting ones, and is known: one of them waits in plain Lanczos, several where several start vectors were taken in,
    and it does not matter in which order they are multiplied.

    Attributes:
        store: (capacity, numel) of the working dtype, on the vectors' device.
        projected: (capacity, capacity) float64 on the CPU: q_i' H q_j for multiplied q_j.
        lost: (capacity,) float64 on the CPU: norm of what a product has beside all vectors, and no vector stands for.
        labels: (capacity,) int64 on the CPU: which start vector each vector grew from, those that were multiplied last.
        copies: (capacity, 2) float64 on the CPU: components of the vectors along eigenvectors of two given values that
            are orthogonal to all but what grew from the last start vector, in units of that one's.
        counts: (2,) int64 on the CPU: how many vectors were multiplied, and how many there are.
    """

    def __init__(self, capacity: int, numel: int, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate."""
        self.store = torch.zeros(capacity, numel, dtype=dtype, device=device)
        self.projected = torch.zeros(capacity, capacity, dtype=torch.float64, device="cpu")
        self.lost = torch.zeros(capacity, dtype=torch.float64, device="cpu")
        self.labels = torch.zeros(capacity, dtype=torch.int64, device="cpu")
        self.copies = torch.zeros(capacity, 2, dtype=torch.float64, device="cpu")
        self.counts = torch.zeros(2, dtype=torch.int64, device="cpu")

    @property
    def count(self) -> int:
        """How many vectors were multiplied; the one at this place is the next."""
        return int(self.counts[0])

    @property
    def held(self) -> int:
        """How many vectors there are."""
        return int(self.counts[1])

    @property
    def capacity(self) -> int:
        """Most vectors."""
        return len(self.projected)

    @property
    def numel(self) -> int:
        """Length of a vector."""
        return self.store.shape[1]

    def take(self, coefficients: FloatArray) -> None:
        """Record the product with the next vector.

        Args:
            coefficients: (held,): its components along all vectors.
        """
        j = self.count
        column = torch.from_numpy(coefficients)
        self.projected[: len(column), j] = column
        self.projected[j, : j + 1] = column[: j + 1]
        self.counts[0] += 1

    def ritz(self) -> Ritz:
        """Return the Ritz pairs of the vectors that were multiplied."""
        count, held = self.count, self.held
        values, weights = np.linalg.eigh(self.projected[:count, :count].numpy())
        couplings = self.projected[count:held, :count].numpy() @ weights
        beside = np.abs(weights).T @ self.lost[:count].numpy()
        return Ritz(values, weights, couplings, np.sqrt((couplings**2).sum(0)) + beside)

    def append(self, vector: Tensor, norm: float, points: FloatArray) -> None:
        """Add what the newest product has beside all vectors, as the next one.

        Args:
            vector: (numel,).
            norm: Its norm.
            points: (2,): the values of which ``copies`` has eigenvectors: v'Hq = x v'q for each of them.
        """
        newest, held = self.count - 1, self.held
        known = self.projected[:held, newest] @ self.copies[:held]
        copies = (torch.from_numpy(points) * self.copies[newest] - known) / norm
        self._insert(vector, norm, int(self.labels[newest]))
        self.copies[self.count] = copies
        self.projected[self.count, newest] = norm

    def start(self, vector: Tensor, label: int) -> None:
        """Add a unit vector that is orthogonal to all, as the next one.

        Args:
            vector: (numel,).
            label: Of what grows from it.
        """
        self._insert(vector, 1.0, label)
        self.copies[: self.held] = 0.0
        self.copies[self.count] = 1.0

    def _insert(self, vector: Tensor, norm: float, label: int) -> None:
        count, held = self.count, self.held
        if held > count:
            self._move(count, held)
        torch.div(vector, norm, out=self.store[count])
        self.projected[count].zero_()
        self.labels[count] = label
        self.counts[1] += 1

    def put_first(self, place: int) -> None:
        """Make another waiting vector the next one.

        Args:
            place: Its place, counted from the next one.
        """
        if place:
            first, other = self.count, self.count + place
            for rows in (self.store, self.projected, self.labels, self.copies):
                kept = rows[first].clone()
                rows[first] = rows[other]
                rows[other] = kept

    def drop(self, place: int) -> None:
        """Give up a waiting vector; what products have along it is lost from now on.

        Args:
            place: As for :meth:`put_first`.
        """
        count, last = self.count, self.held - 1
        row = self.count + place
        self.lost[:count] = torch.hypot(self.lost[:count], self.projected[row, :count])
        if row != last:
            self._move(last, row)
        self.counts[1] -= 1

    def rotate(self, ritz: Ritz, chosen: IntArray) -> None:
        """Replace the multiplied vectors by some of the Ritz vectors, in the order given; others go on waiting."""
        count, held, keep = self.count, self.held, len(chosen)
        turn = torch.from_numpy(np.ascontiguousarray(ritz.weights[:, chosen].T)).to(self.store.device)
        for piece in torch.split(self.store, _COLUMNS, dim=1):
            piece[:keep] = (turn @ piece[:count].double()).to(piece.dtype)
        copies = turn.to(self.copies.device) @ self.copies[:count]
        waiting = held - count
        for place in range(waiting):
            self._move(count + place, keep + place)
        self.copies[:keep] = copies
        lost = np.abs(ritz.weights[:, chosen]).T @ self.lost[:count].numpy()
        self.lost.zero_()
        self.lost[:keep] = torch.from_numpy(lost)
        self.projected.zero_()
        self.projected.diagonal()[:keep] = torch.from_numpy(ritz.values[chosen])
        self.projected[keep : keep + waiting, :keep] = torch.from_numpy(ritz.couplings[:, chosen])
        self.counts.copy_(torch.tensor([keep, keep + waiting]))

    def ritz_of_rotated(self, k: int) -> Ritz:
        """Return the first Ritz pairs, right after they were rotated to: the vectors themselves."""
        couplings = self.projected[self.count : self.held, :k].numpy()
        estimates = np.sqrt((couplings**2).sum(0)) + self.lost[:k].numpy()
        return Ritz(self.projected.diagonal()[:k].numpy().copy(), np.eye(k), couplings, estimates)

    def combined(self, weights: FloatArray) -> Tensor:
        """Return a combination of the first vectors, (numel,), summed in fp64."""
        return self._sum(np.arange(len(weights)), weights)

    def error(self, weights: FloatArray, product: Tensor) -> float:
        """Say how far a product is from what it should be by those before.

        Args:
            weights: Of the first vectors, right after they were rotated to, in what was multiplied.
            product: (numel,).

        Returns:
            The norm of the difference.
        """
        k, count, held = len(weights), self.count, self.held
        values = self.projected.diagonal()[:k].numpy() * weights
        waiting = self.projected[count:held, :k].numpy() @ weights
        places = np.concatenate([np.arange(k), np.arange(count, held)])
        known = self._sum(places, np.concatenate([values, waiting]))
        return float(torch.linalg.vector_norm(product - known, dtype=torch.float64))

    def _sum(self, places: IntArray, weights: FloatArray) -> Tensor:
        rows = torch.from_numpy(places).to(self.store.device)
        row = torch.from_numpy(weights).to(self.store.device)
        total = torch.empty_like(self.store[0])
        for piece, part in zip(torch.split(self.store, _COLUMNS, dim=1), torch.split(total, _COLUMNS), strict=True):
            part.copy_(row @ piece[rows].double())
        return total

    def measure(self, first: int, products: Tensor) -> tuple[FloatArray, FloatArray]:
        """Return Rayleigh quotients, and norms of residuals, of vectors whose products are given.

        Args:
            first: Place of the first vector.
            products: (k, numel).

        Returns:
            (k,) each.
        """
        vectors = self.store[first : first + len(products)]
        pairs = list(zip(torch.split(vectors, _COLUMNS, dim=1), torch.split(products, _COLUMNS, dim=1), strict=True))
        dots, squares = torch.zeros((2, len(products)), dtype=torch.float64, device=self.store.device)
        for x, hx in pairs:
            wide = x.double()
            dots += (wide * hx.double()).sum(1)
            squares += wide.square().sum(1)
        quotients = dots / squares
        beside = torch.zeros_like(quotients)
        for x, hx in pairs:
            beside += (hx.double() - quotients[:, None] * x.double()).square().sum(1)
        return quotients.numpy(force=True), (beside / squares).sqrt().numpy(force=True)

    def _move(self, place: int, to: int) -> None:
        """Copy a waiting vector, with what is known of it, to another place."""
        for rows in (self.store, self.projected, self.labels, self.copies):
            rows[to] = rows[place]
