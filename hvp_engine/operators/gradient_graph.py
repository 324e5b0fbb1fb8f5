"""One micro-batch's gradient as a graph, and Hessian products as second backward passes through it.

Reverse-over-reverse (Pearlmutter 1994): with g = dL/dtheta kept as a graph, H_bb v is the gradient of <g_b, v> with
respect to theta_b. Asking autograd for theta_b alone prunes the second pass to the part of the network above the block.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from hvp_engine.blocks import ResolvedBlock
from hvp_engine.errors import ObjectiveError
from hvp_engine.operators.autograd_nodes import function_of, name_of, nodes_behind
from hvp_engine.operators.backward import ONCE, backward, without_second_derivative
from hvp_engine.operators.batchable import BATCHABLE, COMPLEX_VIEWS
from hvp_engine.operators.compiled.products import CompiledProducts, Compiler

Products = tuple[Tensor | None, ...]


class Multiply(Protocol):
    """Multiplies a vector's pieces by a matrix, see :meth:`GradientGraph._multiply`."""

    def __call__(
        self, outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, batched: bool
    ) -> Products:
        """Return the product with respect to each of the inputs, None for zero."""


class GradientGraph:
    """The gradient of one micro-batch's total, kept differentiable for all blocks and probes."""

    is_part: ClassVar[bool] = False
    """Whether it multiplies by a part of the gradient's derivative."""
    semidefinite: ClassVar[bool] = False
    """Whether no product has a negative component along its vector, so that one which has is wrong."""

    def __init__(
        self, total: Tensor, weight: float, parameters: dict[str, nn.Parameter], *, of_all_blocks: bool = True
    ) -> None:
        """Run the first backward pass, keeping its graph.

        Args:
            total: Scalar total of the micro-batch, attached to the graph.
            weight: Weight of the micro-batch in the objective.
            parameters: The parameters that blocks touch, by canonical name.
            of_all_blocks: Whether these are the parameters of all blocks, of which some must enter the loss.

        Raises:
            ObjectiveError: None of the parameters of all blocks enters the loss.
            SecondDerivativeError: An operation has no derivative.
        """
        self.weight = weight
        self._parameters = parameters
        gradients = self._differentiate(total)
        if of_all_blocks and all(gradient is None for gradient in gradients):
            raise ObjectiveError(
                "The loss does not depend on any parameter of the blocks. The loss must use the model it is given as "
                "its first argument (the engine may pass a converted copy)."
            )
        self._gradients = dict(zip(parameters, gradients, strict=True))
        # Slicing a gradient adds a node to the graph; every block does so once, not once per vector.
        self._pieces: dict[str, list[Tensor | None]] = {}
        self._compiled: CompiledProducts | None = None

    def compile(self, compiler: Compiler) -> None:
        """Compile the products that are asked for again and again: for a graph that is kept."""
        self._compiled = CompiledProducts(compiler)

    def _differentiate(self, total: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the total, in the order of the parameters, as a graph."""
        return backward([total], list(self._parameters.values()), None, create_graph=True)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by canonical name."""
        return self._parameters

    @property
    def gradients(self) -> dict[str, Tensor | None]:
        """Gradient of the total per parameter, attached to the graph; None where a parameter is not used."""
        return self._gradients

    @cached_property
    def kinds(self) -> frozenset[str]:
        """Kinds of nodes in the graph, by name; those of this package's own functions, which are tested, left out."""
        kinds = {type(node): node for node in nodes_behind(self._passed)}
        return frozenset(
            name_of(node)
            for node in kinds.values()
            if not getattr(function_of(node), "__module__", "").startswith("hvp_engine.")
        )

    @property
    def _passed(self) -> Iterable[Tensor | None]:
        """The tensors whose graphs products pass through."""
        return self._gradients.values()

    @property
    def batchable(self) -> bool:
        """Whether every node is of a kind known to be right when several vectors pass it at once."""
        return self.kinds <= BATCHABLE

    @property
    def convolves(self) -> bool:
        """Whether there are convolutions, whose passes need more memory than others."""
        return any("Convolution" in kind for kind in self.kinds)

    @property
    def enters_arithmetic(self) -> bool:
        """Whether products enter the objective's arithmetic by themselves, where they need it."""
        return self._compiled is not None

    def refuse_cuts(self) -> None:
        """Refuse a gradient that passed through a backward marked once_differentiable.

        PyTorch leaves an error in its place, but a second backward that is asked for certain parameters never gets
        there: the products would miss that path without a word.

        Raises:
            SecondDerivativeError: There is such a backward.
        """
        if any(name_of(node) == "Error" for node in nodes_behind(self._gradients.values())):
            raise without_second_derivative(ONCE)

    def gradient(self, block: ResolvedBlock) -> Tensor:
        """Gradient of the total with respect to a block, flat (numel,)."""
        return torch.cat(
            [
                (torch.zeros_like(self._parameters[part.parameter]) if g is None else g.detach())[
                    ... if part.index is None else part.index
                ].reshape(-1)
                for part in block.parts
                for g in [self._gradients[part.parameter]]
            ]
        )

    def product(self, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, batched: bool) -> None:
        """Add the product of the total's Hessian block with each vector.

        Args:
            block: The block.
            vectors: (k, numel).
            out: (k, numel), added to in place.
            batched: Push all k vectors through one vmapped second backward instead of k single ones.

        Raises:
            SecondDerivativeError: An operation has no second derivative.
        """
        if batched and vectors.shape[0] > 1:
            self._run(block, vectors, out, batched=True)
            return
        for vector, row in zip(vectors, out, strict=True):
            self._run(block, vector, row, batched=False)

    def _run(self, block: ResolvedBlock, vectors: Tensor, out: Tensor, *, batched: bool) -> None:
        if self._compiled is None:
            self._add(block, vectors, out, batched=batched)
        else:
            self._compiled.add(self._add, block, vectors, out, batched=batched)

    def derivative(self, block: ResolvedBlock, vector: Tensor, out: Tensor) -> None:
        """Add the derivative of the block's gradient along a vector (numel,): what differences of it are held against.

        The Hessian's product, whatever matrix :meth:`product` multiplies with.
        """
        self._add(block, vector, out, self._hessian, batched=False)

    def _add(
        self, block: ResolvedBlock, vectors: Tensor, out: Tensor, multiply: Multiply | None = None, *, batched: bool
    ) -> None:
        multiply = multiply or self._multiply
        if block.name not in self._pieces:
            self._pieces[block.name] = [
                None if (g := self._gradients[part.parameter]) is None else part.take(g) for part in block.parts
            ]
        outputs: list[Tensor] = []
        cotangents: list[Tensor] = []
        for piece, vector in zip(self._pieces[block.name], block.split(vectors), strict=True):
            if piece is not None and piece.requires_grad:  # else: linear in everything, no curvature
                outputs.append(piece)
                cotangents.append(self._viewable(vector))
        if not outputs:
            return
        names = list(dict.fromkeys(part.parameter for part in block.parts))
        inputs: list[Tensor] = [self._parameters[name] for name in names]
        products = dict(zip(names, multiply(outputs, inputs, cotangents, batched=batched), strict=True))
        for part, target in zip(block.parts, block.split(out), strict=True):
            product = products[part.parameter]
            if product is None:
                continue
            if part.index is not None:
                leading = (slice(None),) if batched else ()
                index = part.index if isinstance(part.index, tuple) else (part.index,)
                product = product[(*leading, *index)]
            target.add_(product)

    def _multiply(
        self, outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, batched: bool
    ) -> Products:
        """Multiply by the matrix.

        Args:
            outputs: The gradient's pieces that belong to a block.
            inputs: The parameters that the block touches.
            cotangents: A vector's pieces, or those of several, (k, ...), where ``batched``.
            batched: Whether they are.

        Returns:
            The product with respect to each of the inputs, None for zero.
        """
        return self._hessian(outputs, inputs, cotangents, batched=batched)

    def _hessian(
        self, outputs: list[Tensor], inputs: list[Tensor], cotangents: list[Tensor], *, batched: bool
    ) -> Products:
        return backward(outputs, inputs, cotangents, batched=batched)

    def _viewable(self, cotangent: Tensor) -> Tensor:
        """Copy a piece of a flat vector where it starts between two real-imaginary pairs and may be read as complex."""
        leading = zip(cotangent.shape[:-1], cotangent.stride()[:-1], strict=True)
        odd = cotangent.storage_offset() % 2 or any(stride % 2 for size, stride in leading if size > 1)
        if not odd or not self.kinds & COMPLEX_VIEWS:
            return cotangent
        return cotangent.clone(memory_format=torch.contiguous_format)
