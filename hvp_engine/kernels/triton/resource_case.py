"""What a kernel module declares about itself, so that all its variants can be compiled ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["COMPILE_OPTIONS", "ResourceCase"]

# Of every launch and every compilation ahead of time. A product and a sum become one instruction whatever the release's
# default is: Triton 3.9 warns that 3.10 changes it.
COMPILE_OPTIONS: Mapping[str, Any] = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class ResourceCase:
    """One variant of a kernel, as the package launches it.

    Every kernel module of this package has a function ``resource_cases() -> list[ResourceCase]``.

    Attributes:
        kernel: The function decorated with ``triton.jit``.
        label: What tells this variant from the kernel's others, such as ``"fp32 basis, fp32 vector"``.
        signature: Triton type by argument: ``"*fp32"``, ``"*bf16"``, ``"i64"``, ... of every argument that is not
            in ``constexprs``; a tuple of types, and of the values that the launch makes constants (None, strides of
            1), for a tuple of arguments.
        constexprs: Value by argument declared ``tl.constexpr``.
        num_warps: As the launch sets it.
        num_stages: As the launch sets it; Triton's default is 3.
        aligned: Pointer arguments, and integer ones divisible by 16, that the launch gives with 16-byte alignment;
            None means all pointers.
        architectures: Compute capabilities that the package launches it on; None means all that it serves.
        max_spill_bytes: Bytes of register spills that are known and accepted.
    """

    kernel: Any
    label: str
    signature: Mapping[str, object]
    constexprs: Mapping[str, object] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    aligned: tuple[str, ...] | None = None
    architectures: tuple[int, ...] | None = None
    max_spill_bytes: int = 0

    @property
    def name(self) -> str:
        """Name of the row in the table of resources."""
        return f"{self.kernel.__name__} ({self.label})"
