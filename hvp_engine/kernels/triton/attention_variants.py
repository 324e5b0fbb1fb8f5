"""The variants of the attention kernels that are compiled ahead of time."""

from __future__ import annotations

from typing import Any

import torch

from hvp_engine.kernels.triton.attention_tiling import FLOAT32, TF32, Tiling, tiling
from hvp_engine.kernels.triton.resource_case import ResourceCase

__all__ = ["attention_variants"]

_TANGENTS = ("tangent_query", "tangent_key", "out_grad_out")  # absent from the first backward pass
_FLOAT32_TENSORS = ("statistics", "means")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def attention_variants(kernel: Any) -> list[ResourceCase]:
    """List a kernel's variants: the second backward by dtype, head size and mask, and the first backward."""
    name = kernel.__name__
    half = [("bf16", 64, None), ("bf16", 128, None), ("fp16", 128, None), ("bf16", 128, "*u8"), ("bf16", 128, "*bf16")]
    kinds = [
        (kind, width, mask, tiling(name, _DTYPES[kind], width, masked=mask is not None)) for kind, width, mask in half
    ]
    kinds += [("fp32", 64, None, FLOAT32.get(name)), ("fp32", 128, None, TF32.get(name))]
    kinds.append(("fp32", 128, "*fp32", FLOAT32.get(name)))
    cases = [_variant(kernel, kind, width, tile, mask) for kind, width, mask, tile in kinds if tile is not None]
    first = tiling(name, torch.bfloat16, 64, masked=False)
    if name != "attention_forward" and first is not None:
        cases.append(_variant(kernel, "bf16", 64, first, absent=_TANGENTS))
    return cases


def _variant(
    kernel: Any, kind: str, width: int, tile: Tiling, mask: str | None = None, absent: tuple[str, ...] = ()
) -> ResourceCase:
    signature: dict[str, object] = {}
    for argument in kernel.arg_names:
        if argument == "scale":
            signature[argument] = "fp32"
        elif argument in ("heads", "group", "queries", "keys", "splits"):
            signature[argument] = "i32"
        elif argument == "parts":
            signature[argument] = ("*fp32", "i64", "i32", "i32", "i32", 1)
        elif argument == "mask":
            signature[argument] = (mask, "i32", "i32", "i32", 1)
        elif not argument.isupper():
            pointer = "*fp32" if argument in _FLOAT32_TENSORS else f"*{kind}"
            signature[argument] = (None if argument in absent else pointer, "i32", "i32", "i32", 1)
    constants = {"CAUSAL": mask is None, "WIDTH": width, "VALUE_WIDTH": width, **tile.constants()}
    if "PARTS" in kernel.arg_names:
        constants["PARTS"] = width // min(width, 64)
    aligned = tuple(n for n, t in signature.items() if isinstance(t, tuple) and n not in ("mask", *_FLOAT32_TENSORS))
    precision = f" {tile.precision}" if kind == "fp32" else ""
    seen = "causal" if mask is None else "boolean mask" if mask == "*u8" else "additive mask"
    return ResourceCase(
        kernel,
        f"{kind}{precision}, head size {width}, {seen}{', first backward' if absent else ''}",
        signature,
        constants,
        tile.warps,
        tile.stages,
        aligned,
    )
