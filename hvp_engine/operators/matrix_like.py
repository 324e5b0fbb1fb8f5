"""What makes an operator behave like the symmetric matrix that it multiplies with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvp_engine.blocks import Partition, ResolvedBlock
from hvp_engine.errors import BlockError
from hvp_engine.operators import forms
from hvp_engine.operators.scipy_operator import linear_operator
from hvp_engine.operators.vectors import block_named
from hvp_engine.problem.objective import Objective
from hvp_engine.system.formatting import first_names

OperatorT = TypeVar("OperatorT", bound="MatrixLike")


class MatrixLike(ABC):
    """A symmetric matrix, or several by block name, known by its products.

    Attributes:
        objective: What it is a matrix of; dtype and device of the products are its.
        partition: The blocks.
    """

    objective: Objective
    partition: Partition
    __array_ufunc__ = None  # NumPy leaves ``array @ operator`` to the operator

    @abstractmethod
    def matmat(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply (k, numel) vectors per block, in rows, by their blocks."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """Block names in order."""
        return tuple(self.partition.blocks)

    @property
    def numel(self) -> dict[str, int]:
        """Length of each block's vectors."""
        return self.partition.numel

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided about tied and frozen parameters, in plain words."""
        return self.partition.notes

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix of an operator with one block.

        Raises:
            BlockError: There are several blocks; ``numel`` has their sizes.
        """
        return (self._only_block("The shape is that of one matrix").numel,) * 2

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of vectors and products."""
        return self.objective.dtype

    @property
    def device(self) -> torch.device:
        """Device of vectors and products."""
        return self.objective.device

    @property
    def T(self: OperatorT) -> OperatorT:
        """The transpose: the operator itself, which is symmetric."""
        return self

    @property
    def H(self: OperatorT) -> OperatorT:
        """The adjoint: the operator itself, which is symmetric."""
        return self

    @torch.inference_mode(False)
    def __matmul__(self, vectors: Any) -> Any:
        """Multiply: ``operator @ v`` in one sweep over the data.

        Args:
            vectors: For an operator with one block, of n parameters, a tensor or NumPy array of shape (n,), or (n, k)
                with vectors as columns; or a mapping of all its parameter names to tensors shaped like the parameters.
                For any operator a mapping of block names to these. A block that is one tensor also takes vectors
                of its shape. They are converted to the operator's dtype and device.

        Returns:
            The products in the form of the vectors, in the operator's dtype, on its device (arrays for arrays).

        Raises:
            BlockError: A block or a parameter is unknown, or missing.
            ConfigurationError: A shape is wrong, or a vector is complex or not finite.
            NotFiniteError: A product is not finite.
            NonDeterministicError: The loss or the data is not what it was in an earlier sweep.
        """
        by_block = isinstance(vectors, Mapping) and (
            len(self.partition.blocks) > 1 or vectors.keys() <= self.partition.blocks.keys()
        )
        given = (
            vectors if by_block else {self._only_block("Vectors are given by block, as {name: vectors}").name: vectors}
        )
        model = self.objective.model
        formed = {
            name: forms.form_of(model, block_named(self.partition, name), of_block) for name, of_block in given.items()
        }
        products = self.matmat({name: form.rows for name, form in formed.items()})
        restored = {name: form.restored(products[name]) for name, form in formed.items()}
        return restored if by_block else next(iter(restored.values()))

    def __rmatmul__(self, vectors: Any) -> Any:
        """Multiply from the left, ``v @ operator``: (n,), or (k, n) with vectors as rows; otherwise as ``@`` does."""
        return forms.transposed(self @ forms.transposed(vectors))

    def flatten(self, block: str, tensors: Mapping[str, Any]) -> Tensor:
        """Gather tensors shaped like a block's parameters into its flat vector.

        Args:
            block: Its name.
            tensors: One per parameter of the block, by any of its names. Of a parameter that the block holds a slice
                of, what is outside does not enter.

        Returns:
            The vector (numel,), in the operator's dtype, on its device.

        Raises:
            BlockError: The block or a name is unknown, or one is missing or given twice.
            ConfigurationError: A tensor has another shape than its parameter.
        """
        found = block_named(self.partition, block)
        return forms.flatten(self.objective.model, found, tensors).to(self.device, self.dtype)

    def unflatten(self, block: str, flat: Tensor) -> dict[str, Tensor]:
        """Spread a block's flat vector over tensors shaped like its parameters.

        Args:
            block: Its name.
            flat: (numel,), as :meth:`flatten` gives it.

        Returns:
            New tensors by parameter name, of the vector's dtype and device; zero outside the slice, where the block
            holds a slice of a parameter.

        Raises:
            BlockError: The block is unknown.
            ConfigurationError: The vector has another shape.
        """
        return forms.unflatten(self.objective.model, block_named(self.partition, block), flat)

    def scipy(self, block: str | None = None) -> Any:
        """Return a block as a ``scipy.sparse.linalg.LinearOperator``, for ``eigsh``, ``svds``, ``cg`` and the like.

        Several vectors at once (``matmat``) take one sweep over the data. Solvers compute in the operator's dtype;
        ``precision="fp64"`` is what their default tolerances are made for.

        Args:
            block: Its name; None where there is one block.

        Raises:
            BlockError: The block is unknown, or none is named and there are several.
            ConfigurationError: SciPy is not installed.
        """
        found = (
            self._only_block("A LinearOperator is one matrix") if block is None else block_named(self.partition, block)
        )
        return linear_operator(found.numel, self.dtype, lambda x: (self @ {found.name: x})[found.name])

    def _only_block(self, why: str) -> ResolvedBlock:
        """Return the only block.

        Args:
            why: What needs one block, in words that an error message begins with.

        Raises:
            BlockError: There are several.
        """
        blocks = self.partition.blocks
        if len(blocks) > 1:
            raise BlockError(
                f"{why}, and this operator has {len(blocks)} blocks, {first_names(list(blocks))}: name them, or "
                "make an operator of one block."
            )
        return next(iter(blocks.values()))
