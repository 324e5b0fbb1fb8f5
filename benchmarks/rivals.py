"""Products with a full Hessian as other packages and plain PyTorch form them, each behind one call.

A rival is built from a `Task` and multiplies flat vectors. Where a package may keep a gradient graph between products,
it does; attention is PyTorch's math path, because its other kernels have no second derivatives.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Product = Callable[[Tensor], Tensor]


@dataclass
class Task:
    """A model, one batch, and the mean cross-entropy of its logits.

    Attributes:
        model: Maps the inputs to logits (rows, classes).
        inputs: Its one batch.
        targets: Classes (rows,).
        transformer: Whether it has attention and LayerNorm, with which rivals need help.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    transformer: bool = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters in the order of the flat vectors."""
        return list(self.model.parameters())

    @property
    def numel(self) -> int:
        """Length of a flat vector."""
        return sum(p.numel() for p in self.model.parameters())

    def loss(self) -> Tensor:
        """Compute the loss at the model's parameters."""
        return F.cross_entropy(self.model(self.inputs), self.targets)

    def vectors(self, count: int) -> Tensor:
        """Draw unit vectors (count, numel), the first ones the same however many there are."""
        drawn = torch.stack([torch.randn(self.numel, generator=torch.Generator().manual_seed(n)) for n in range(count)])
        return drawn / drawn.norm(dim=1, keepdim=True)

    def split(self, flat: Tensor) -> list[Tensor]:
        """View a flat vector as one tensor per parameter."""
        sizes = [p.numel() for p in self.parameters]
        return [part.view_as(p) for part, p in zip(flat.split(sizes), self.parameters, strict=True)]


class Shifted(nn.Module):
    """Logits of all tokens of a language model but the last, one row per target."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, length) to logits (batch * (length - 1), vocabulary)."""
        logits: Tensor = self.model(tokens)[:, :-1]
        return logits.flatten(0, 1)


def language_task(model: nn.Module, tokens: Tensor) -> Task:
    """Return the task of predicting next tokens (batch, length)."""
    return Task(Shifted(model), tokens, tokens[:, 1:].flatten(), transformer=True)


def with_math_attention(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same call with the attention that can be differentiated twice."""

    def wrapped(*args: Any) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return call(*args)

    return wrapped


def plain_layer_norm(x: Tensor, shape: Any, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """F.layer_norm over the last dimension, in operations that every transform differentiates right."""
    centred = x - x.mean(-1, keepdim=True)
    normal = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * weight
    return normal if bias is None else normal + bias


def autograd(task: Task) -> Product:
    """Plain PyTorch: the gradient's graph once, a second backward per vector."""
    parameters = task.parameters
    gradients = torch.autograd.grad(task.loss(), parameters, create_graph=True)

    def product(vector: Tensor) -> Tensor:
        products = torch.autograd.grad(gradients, parameters, task.split(vector), retain_graph=True)
        return torch.cat([p.reshape(-1) for p in products])

    return product


def pyhessian_operator(task: Task) -> Any:
    """PyHessian's matrix of a single batch, whose gradient graph it keeps: its fast way."""
    package = importlib.import_module("pyhessian")
    return package.hessian(task.model, F.cross_entropy, data=(task.inputs, task.targets), cuda=False)


def pyhessian(task: Task) -> Product:
    """Multiply on the graph that PyHessian keeps."""
    package = importlib.import_module("pyhessian")
    operator = pyhessian_operator(task)

    def product(vector: Tensor) -> Tensor:
        products = package.hessian_vector_product(operator.gradsH, operator.params, task.split(vector))
        return torch.cat([p.reshape(-1) for p in products])

    return product


def eigenthings_operator(task: Task) -> Any:
    """Build the matrix of hessian-eigenthings: a forward and two backwards per product."""
    package = importlib.import_module("hessian_eigenthings")

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    return package.HessianOperator(task.model, [(task.inputs, task.targets)], loss)


def eigenthings(task: Task) -> Product:
    """Multiply as hessian-eigenthings does."""
    product: Product = eigenthings_operator(task).matvec
    return product


def curvlinops_operator(task: Task) -> Any:
    """Build the matrix of curvlinops: forward over reverse with torch.func."""
    package = importlib.import_module("curvlinops")
    data = [(task.inputs, task.targets)]
    return package.HessianLinearOperator(
        task.model, nn.CrossEntropyLoss(), task.parameters, data, check_deterministic=False
    )


def curvlinops(task: Task) -> Product:
    """Multiply as curvlinops does.

    Under its transforms PyTorch 2.13 differentiates F.layer_norm wrongly (1.6e-3 of the product, in fp64 too), so that
    function is plain arithmetic meanwhile.
    """
    operator = curvlinops_operator(task)

    def product(vector: Tensor) -> Tensor:
        found: Tensor = operator @ vector
        return found

    return mock.patch.object(F, "layer_norm", plain_layer_norm)(product) if task.transformer else product


def cola_operator(task: Task) -> Any:
    """CoLA's matrix: forward over reverse of a function of the flat parameters."""
    package = importlib.import_module("cola")
    names = [name for name, _ in task.model.named_parameters()]

    def loss(flat: Tensor) -> Tensor:
        values = dict(zip(names, task.split(flat), strict=True))
        return F.cross_entropy(torch.func.functional_call(task.model, values, (task.inputs,)), task.targets)

    return package.ops.Hessian(loss, torch.cat([p.detach().reshape(-1) for p in task.parameters]))


def cola(task: Task) -> Product:
    """Multiply as CoLA does."""
    operator = cola_operator(task)
    return lambda vector: operator @ vector


@dataclass(frozen=True)
class Rival:
    """A way to multiply, and the package that it needs."""

    build: Callable[[Task], Product]
    package: str

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.package) is not None

    def product(self, task: Task) -> Product:
        """Build the product of a task; the first call of it may still be a slow one."""
        if not task.transformer:
            return self.build(task)
        product: Product = with_math_attention(with_math_attention(self.build)(task))
        return product


RIVALS = {
    "plain autograd": Rival(autograd, "torch"),
    "PyHessian": Rival(pyhessian, "pyhessian"),
    "hessian-eigenthings": Rival(eigenthings, "hessian_eigenthings"),
    "curvlinops": Rival(curvlinops, "curvlinops"),
    "cola": Rival(cola, "cola"),
}
