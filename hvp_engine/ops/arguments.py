"""Arguments that no kernel takes: refused in our words, or left to PyTorch's own operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.system.failures import pass_on
from hvp_engine.system.formatting import first_line
from hvp_engine.system.layouts import kind_of

__all__ = ["check_operands", "check_tensor", "run_plain"]

T = TypeVar("T")


def check_tensor(operation: str, name: str, value: Any) -> None:
    """Raise ConfigurationError unless an argument is a tensor."""
    if not isinstance(value, Tensor):
        raise ConfigurationError(
            f"{operation} got {name} of type {type(value).__name__}; it must be a tensor (torch.as_tensor makes one)."
        )


def check_operands(operation: str, operands: Mapping[str, Tensor | None], absent: Sequence[str] = ()) -> None:
    """Check the floating-point arguments of an operation.

    Args:
        operation: The public operation's name.
        operands: The arguments by name.
        absent: Names of those that may be None.

    Raises:
        ConfigurationError: One is no tensor, or of integers, of complex numbers, sparse, or on another device.
    """
    devices: dict[torch.device, str] = {}
    for name, value in operands.items():
        if value is None and name in absent:
            continue
        check_tensor(operation, name, value)
        assert value is not None  # or it would not be a tensor
        _check_numbers(operation, name, value)
        devices.setdefault(value.device, name)
    if len(devices) > 1:
        places = " and ".join(f"{name} on {device}" for device, name in devices.items())
        raise ConfigurationError(f"{operation} got {places}; move them to one device.")


def run_plain(
    operation: str, plain: Callable[[], T], operands: Mapping[str, Tensor | None], absent: Sequence[str] = ()
) -> T:
    """Run an operation in plain PyTorch, for arguments that the kernels do not take.

    Args:
        operation: The public operation's name.
        plain: Runs it.
        operands: Its floating-point arguments by name.
        absent: Names of those that may be None.

    Returns:
        What ``plain`` returns.

    Raises:
        ConfigurationError: The operands do not pass `check_operands`, or PyTorch refuses the arguments.
    """
    check_operands(operation, operands, absent)
    try:
        return plain()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:  # NotImplementedError is a RuntimeError
        pass_on(error)
        raise ConfigurationError(
            f"{operation} cannot take these arguments ({first_line(error)}). Pass what PyTorch's operation of that "
            "name takes."
        ) from error


def _check_numbers(operation: str, name: str, value: Tensor) -> None:
    if value.is_complex():
        raise ConfigurationError(
            f"{operation} got {name} of complex numbers ({value.dtype}); apply it to real and imaginary parts apart "
            "(torch.view_as_real)."
        )
    if not value.is_floating_point() or value.dtype.itemsize == 1:
        raise ConfigurationError(
            f"{operation} got {name} of {value.dtype}; it must be of a floating-point dtype of at least 16 bits: "
            f"convert it with .float()."
        )
    if kind_of(value) == "sparse":
        raise ConfigurationError(f"{operation} got a sparse {name} ({value.layout}); convert it with .to_dense().")
