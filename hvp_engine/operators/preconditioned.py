"""A positive diagonal P, one number per parameter's entry: operators then multiply with P^-1/2 H P^-1/2.

That matrix has the spectrum of P^-1 H: the curvature that an optimiser sees whose step is divided by P.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Adam, Adamax, NAdam, Optimizer

from hvp_engine.blocks import Partition, ResolvedBlock
from hvp_engine.blocks.partition import Names
from hvp_engine.errors import ConfigurationError
from hvp_engine.system.formatting import first_names, raised

Precondition: TypeAlias = Mapping[str, Tensor | float] | Optimizer

READ_OPTIMIZERS = (Adam, NAdam, Adamax)  # AdamW is an Adam
_READ = "torch.optim.Adam, AdamW, NAdam and Adamax"


@dataclass(frozen=True)
class Preconditioner:
    """The square root of a diagonal's inverse.

    Attributes:
        scales: P^-1/2 of every block's parameters, flat (numel,), in the working dtype, on the model's device.
    """

    scales: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        """What the diagonal takes."""
        return sum(scale.numel() * scale.itemsize for scale in self.scales.values())

    def scaled(self, block: ResolvedBlock, vectors: Tensor) -> Tensor:
        """Return P^-1/2 times vectors (k, numel) of a block."""
        return vectors * self.scales[block.name]

    def scale(self, block: str, products: Tensor) -> None:
        """Multiply products (k, numel) of a block by P^-1/2, in place."""
        products.mul_(self.scales[block])


@torch.no_grad()
def preconditioner(
    given: Precondition, model: nn.Module, partition: Partition, device: torch.device, dtype: torch.dtype
) -> Preconditioner:
    """Read the diagonal that a caller gave; its numbers are copied, whatever becomes of their tensors.

    Args:
        given: Positive numbers by parameter name, each a tensor of the parameter's shape or a single number; or an
            optimiser that has taken a step: of Adam's kind P = sqrt(v / (1 - beta2^t)) + eps, as it divides its step.
        model: The model that the caller gave, whose parameters an optimiser holds.
        partition: The blocks.
        device: Where products are formed.
        dtype: The working dtype.

    Raises:
        ConfigurationError: It lacks a parameter of the blocks, or an entry is not positive and finite, or has another
            shape; the optimiser is of no kind that is read, or of another model, or has taken no step.
    """
    names = Names(model)
    parameters = {name: names.parameters[name] for name in partition.parameters}
    if isinstance(given, Optimizer):
        diagonals = _of_optimizer(given, parameters)
    elif isinstance(given, Mapping):
        diagonals = _of_mapping(given, parameters, names)
    else:
        raise ConfigurationError(
            f"precondition is of type {type(given).__name__}; give a mapping of parameter names to tensors of positive "
            f"numbers, or an optimizer ({_READ})."
        )
    scales = {name: _inverse_root(name, diagonals[name], parameters[name], device, dtype) for name in parameters}
    return Preconditioner(
        {
            name: torch.cat([part.take(scales[part.parameter]).reshape(-1) for part in block.parts])
            for name, block in partition.blocks.items()
        }
    )


def _inverse_root(name: str, diagonal: Tensor, parameter: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return P^-1/2 in the shape of a parameter."""
    if diagonal.shape != parameter.shape and diagonal.dim() > 0:
        raise ConfigurationError(
            f"The preconditioner of {name!r} has shape {tuple(diagonal.shape)}, the parameter "
            f"{tuple(parameter.shape)}; give a tensor of that shape, or a single number for all of it."
        )
    root = diagonal.to(device, torch.float64).rsqrt().to(dtype)
    if not bool((root.isfinite() & (root > 0)).all()):
        raise ConfigurationError(
            f"The preconditioner of {name!r} has entries that are not positive and finite numbers"
            f"{f' (or have no inverse root in {dtype})' if bool((diagonal > 0).all()) else ''}; add a small number to "
            "them, as eps of an optimizer is."
        )
    return root.expand(parameter.shape)


def _of_mapping(
    given: Mapping[str, Tensor | float], parameters: Mapping[str, Tensor], names: Names
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    unknown = [str(name) for name in given if name not in names.canonical]
    if unknown:
        raise ConfigurationError(
            f"precondition names what is no parameter of the model: {first_names(unknown)}. Its keys must be names as "
            "in model.named_parameters()."
        )
    for name, value in given.items():
        try:
            diagonal = torch.as_tensor(value, dtype=torch.float64 if isinstance(value, (int, float)) else None)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigurationError(
                f"The preconditioner of {name!r} is of type {type(value).__name__}; give a tensor of positive numbers."
            ) from error
        if diagonal.is_complex() or diagonal.is_meta or diagonal.layout != torch.strided:
            raise ConfigurationError(
                f"The preconditioner of {name!r} must be a dense tensor of real numbers, not {diagonal.dtype} with "
                f"layout {diagonal.layout} on {diagonal.device}."
            )
        found[names.canonical[name]] = diagonal.detach()
    _refuse_missing(parameters, found, "precondition has no entry for", "Give every one, 1.0 for those to leave alone.")
    return found


def _of_optimizer(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what an optimiser divides its next step by, by the names of the parameters that it holds."""
    if not isinstance(optimizer, READ_OPTIMIZERS):
        raise ConfigurationError(
            f"precondition is of type {type(optimizer).__name__}, of which it is not known what it divides its steps "
            f"by; {_READ} are read. Give a mapping of parameter names to tensors of positive numbers instead."
        )
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    held = [name for name, parameter in parameters.items() if id(parameter) in groups]
    _refuse_missing(
        parameters,
        held,
        "The optimizer does not hold these parameters of the blocks:",
        "It must be made of the parameters of the model that is given, not of a copy's; blocks may leave out what it "
        "does not train.",
    )
    stepped = [name for name in held if optimizer.state.get(parameters[name], {}).get("step") is not None]
    _refuse_missing(
        parameters,
        stepped,
        "The optimizer has no state yet for",
        "Take a step first (loss.backward(), optimizer.step()), or load its state; blocks may leave out what gets no "
        "gradient.",
    )
    try:
        return {name: _divisor(optimizer, groups[id(parameters[name])], parameters[name]) for name in stepped}
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigurationError(
            f"The optimizer's divisor cannot be read ({raised(error)}): its state and its groups do not fit together, "
            "as after amsgrad was switched on. Take a step first, or give a mapping of parameter names to tensors."
        ) from error


def _divisor(optimizer: Optimizer, group: Mapping[str, object], parameter: Tensor) -> Tensor:
    """Return sqrt(v_hat) + eps as the optimiser's last step had it; Adamax keeps the largest gradients, with eps."""
    state = optimizer.state[parameter]
    if isinstance(optimizer, Adamax):
        return torch.as_tensor(state["exp_inf"])
    betas: Any = group["betas"]
    eps: Any = group["eps"]
    second = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    correction = 1.0 - float(betas[1]) ** float(state["step"])
    return torch.as_tensor(second).double().div(correction).sqrt_().add_(float(eps))


def _refuse_missing(wanted: Iterable[str], found: Iterable[str], what: str, fix: str) -> None:
    known = set(found)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ConfigurationError(f"{what} {first_names(missing)}. {fix}")
