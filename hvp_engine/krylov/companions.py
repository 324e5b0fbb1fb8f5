"""What goes along with streams in a sweep: single products that a basis deflates, and columns of small blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from hvp_engine.errors import NotFiniteError, not_finite
from hvp_engine.krylov.basis import Basis
from hvp_engine.krylov.probes import probe
from hvp_engine.results.spectrum_checks import SINGLE_FIELDS

SINGLES_AT_ONCE = 4  # single products of a block in one sweep, and what it gets at least
COLUMNS_AT_ONCE = 16  # columns of a block's matrix in one sweep: what a pass may carry
_PIECE = 1 << 16  # entries widened to fp64 at a time
_UNDECIDED = -1


class SingleProducts:
    """Products of blocks with vectors ``h = (I - QQ') g``, where Q are all but the newest vectors of a stream.

    Attributes:
        wanted: (blocks,) int64: products to take in all; -1 until that is decided.
        done: (blocks,) int64.
        values: (blocks, most, 3) float64, on the vectors' device: ``h'Hh / h'h``, ``|Hh|^2 / h'h``, ``(q'h)^2 / h'h``.
    """

    def __init__(self, blocks: list[str], most: int, seed: int, device: torch.device) -> None:
        """Begin without any.

        Args:
            blocks: The blocks, in order.
            most: Largest number of products per block.
            seed: Of the job; the vectors g have keys of their own.
            device: Where vectors live.
        """
        self._rows = {block: row for row, block in enumerate(blocks)}
        self._seed, self.most = seed, most
        self.wanted = torch.full((len(blocks),), _UNDECIDED, device="cpu")
        self.done = torch.zeros(len(blocks), dtype=torch.int64, device="cpu")
        self.values = torch.zeros(len(blocks), most, SINGLE_FIELDS, dtype=torch.float64, device=device)

    def is_decided(self, block: str) -> bool:
        """Say whether it is known how many products a block gets."""
        return int(self.wanted[self._rows[block]]) != _UNDECIDED

    def left(self, block: str) -> int:
        """Return how many products a block lacks."""
        row = self._rows[block]
        return max(0, int(self.wanted[row]) - int(self.done[row]))

    def want(self, block: str, count: int) -> None:
        """Decide how many products a block gets in all, no fewer than it has."""
        row = self._rows[block]
        self.wanted[row] = max(int(self.done[row]), min(self.most, count))

    def of(self, block: str) -> Tensor:
        """Return the values of a block's products, (products, 3) on the CPU."""
        row = self._rows[block]
        return self.values[row, : int(self.done[row])].cpu()

    def vectors(self, block: str, basis: Basis, steps: int) -> Tensor:
        """Make the next vectors of a block, (k, numel) of about unit length.

        Args:
            block: The block, which has one stream.
            basis: Its vectors.
            steps: How many steps its stream took; one vector less is taken out.
        """
        row = self._rows[block]
        newest = basis.newest(steps - 1, block)[0]
        count = min(SINGLES_AT_ONCE, self.left(block))
        vectors = torch.empty(count, newest.numel(), dtype=newest.dtype, device=newest.device)
        for index, vector in enumerate(vectors):
            number = -1 - int(self.done[row]) - index  # the streams' own probes are numbered from 0 on
            vector.copy_(probe(self._seed, block, number, newest.numel(), "gaussian", newest.dtype))
        if steps > 1:
            basis.deflate((block, 0), steps - 1, list(vectors))
        return vectors.div_(vectors.norm(dim=1, keepdim=True))

    def take(self, block: str, vectors: Tensor, products: Tensor, newest: Tensor) -> None:
        """Record products.

        Args:
            block: The block.
            vectors: As :meth:`vectors` gave them.
            products: Of these, (k, numel).
            newest: (numel,): the first Lanczos vector that was not taken out.
        """
        row = self._rows[block]
        first = int(self.done[row])
        for index, (h, product) in enumerate(zip(vectors, products, strict=True)):
            length = _dot(h, h)
            found = torch.stack([_dot(h, product), _dot(product, product), _dot(newest, h).square()])
            self.values[row, first + index] = found / length
        self.done[row] = first + len(vectors)

    def refuse_nonfinite(self) -> None:
        """Raise for a product that was not finite; on a GPU this waits.

        Raises:
            NotFiniteError: There is one.
        """
        if not bool(self.values.isfinite().all()):
            broken = (~self.values.isfinite()).flatten(1).any(1).tolist()
            block = next(block for block, row in self._rows.items() if broken[row])
            raise NotFiniteError(not_finite(f"of block {block!r}", " with a deflated vector"))


class BlockMatrix:
    """The whole matrix of a small block, column by column.

    Attributes:
        rows: (numel, numel) of the working dtype: row i is the product with unit vector i.
        done: (1,) int64: how many are there.
    """

    def __init__(self, numel: int, dtype: torch.dtype, device: torch.device) -> None:
        """Begin with none."""
        self.rows = torch.zeros(numel, numel, dtype=dtype, device=device)
        self.done = torch.zeros(1, dtype=torch.int64, device="cpu")

    @property
    def left(self) -> int:
        """Columns that are missing."""
        return len(self.rows) - int(self.done)

    def vectors(self) -> Tensor:
        """Return the next unit vectors, (k, numel)."""
        first = int(self.done)
        vectors = torch.zeros(min(COLUMNS_AT_ONCE, self.left), len(self.rows)).to(self.rows)
        vectors[:, first:].fill_diagonal_(1.0)
        return vectors

    def take(self, products: Tensor) -> None:
        """Record their products."""
        first = int(self.done)
        self.rows[first : first + len(products)] = products
        self.done += len(products)

    def eigenvalues(self, block: str) -> tuple[Tensor, float]:
        """Return all eigenvalues of the symmetric part in fp64, and the relative error of a product.

        The error is what the matrix lacks of symmetry: the difference of two products' errors in every entry.

        Raises:
            NotFiniteError: A product was not finite.
        """
        matrix = self.rows.double().cpu()
        if not bool(matrix.isfinite().all()):
            raise NotFiniteError(not_finite(f"of block {block!r}", " with a unit vector"))
        size = float(torch.linalg.vector_norm(matrix))
        apart = float(torch.linalg.vector_norm(matrix - matrix.T))
        return torch.linalg.eigvalsh((matrix + matrix.T) / 2), apart / (2**0.5 * size) if size else 0.0


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two vectors in fp64, a piece at a time, so that none is copied whole."""
    pieces = zip(torch.split(a, _PIECE), torch.split(b, _PIECE), strict=True)
    return torch.stack([x.double() @ y.double() for x, y in pieces]).sum()
