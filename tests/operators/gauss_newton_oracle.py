"""Dense Gauss-Newton matrices in float64, from the Jacobian of the outputs and the Hessian of the loss in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from problems import to_double
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

Outputs = Callable[[nn.Module, Any], Tensor]
OfOutputs = Callable[[Tensor, Any], tuple[Tensor, float]]


def dense_gauss_newton(
    model: nn.Module, outputs: Outputs, loss: OfOutputs, data: Iterable[Any], names: Iterable[str] | None = None
) -> Tensor:
    """J' H_out J over whole parameters, (numel, numel).

    Args:
        model: The network, in any dtype.
        outputs: What it gives for a batch, of any shape.
        loss: Total and weight of a batch from its outputs.
        data: Batches.
        names: The parameters; all of them for None.
    """
    model = copy.deepcopy(model).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    chosen = list(parameters) if names is None else list(names)
    sizes = [parameters[name].numel() for name in chosen]
    total: Tensor | float = 0.0
    weights = 0.0
    for batch in map(to_double, data):

        def of_flat(flat: Tensor, batch: Any = batch) -> Tensor:
            pieces = {name: p.view_as(parameters[name]) for name, p in zip(chosen, flat.split(sizes), strict=True)}
            return functional_call(_Calls(model, outputs), _prefixed({**parameters, **pieces}), (batch,)).flatten()

        flat = torch.cat([parameters[name].flatten() for name in chosen])
        with sdpa_kernel(SDPBackend.MATH):
            out = of_flat(flat)
            with torch.no_grad():
                shape = outputs(model, batch).shape
            jacobian = jacrev(of_flat)(flat)
        second = jacrev(jacrev(lambda z, batch=batch, shape=shape: loss(z.view(shape), batch)[0]))(out)
        total = total + jacobian.T @ second @ jacobian
        weights += loss(out.view(shape), batch)[1]
    assert isinstance(total, Tensor)
    return total / weights


class _Calls(nn.Module):
    """Makes a function of a model a module, so that its parameters can be replaced."""

    def __init__(self, model: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.model, self._outputs = model, outputs

    def forward(self, batch: Any) -> Tensor:
        return self._outputs(self.model, batch)


def _prefixed(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{name}": parameter for name, parameter in parameters.items()}
