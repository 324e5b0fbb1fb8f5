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
    """Lists a kernel's variants: dtypes and head sizes without a mask, then masks, then the first backward pass."""
    name = kernel.__name__
    chosen = [("fp32", width, FLOAT32[name]) for width in (64, 128)]
    chosen += [("fp32", width, TF32[name]) for width in (64, 128)]
    chosen += [
        (kind, width, tiling(name, _DTYPES[kind], width, masked=False))
        for kind in ("bf16", "fp16")
        for width in (64, 128)
    ]
    cases = [_variant(kernel, kind, width, tile, causal=True) for kind, width, tile in chosen]
    half = tiling(name, torch.bfloat16, 64, masked=False)
    cases.append(_variant(kernel, "bf16", 16, tiling(name, torch.bfloat16, 16, masked=False), causal=False))
    for kind in ("bf16", "fp32"):
        tile = tiling(name, _DTYPES[kind], 128, masked=True)
        cases += [_variant(kernel, kind, 128, tile, causal=False, mask=mask) for mask in ("*u8", "*fp32")]
    if name != "attention_forward":
        cases.append(_variant(kernel, "bf16", 64, half, causal=True, absent=_TANGENTS))
        cases.append(_variant(kernel, "fp32", 64, FLOAT32[name], causal=True, absent=_TANGENTS))
    return cases


def _variant(
    kernel: Any, kind: str, width: int, tile: Tiling, *, causal: bool, mask: str | None = None, absent: Any = ()
) -> ResourceCase:
    signature: dict[str, object] = {}
    for argument in kernel.arg_names:
        if argument == "scale":
            signature[argument] = "fp32"
        elif argument in ("heads", "group", "queries", "keys"):
            signature[argument] = "i32"
        elif argument == "mask":
            signature[argument] = (mask, "i32", "i32", "i32", 1)
        elif not argument.isupper():
            pointer = "*fp32" if argument in _FLOAT32_TENSORS else f"*{kind}"
            signature[argument] = (None if argument in absent else pointer, "i32", "i32", "i32", 1)
    aligned = tuple(n for n, t in signature.items() if isinstance(t, tuple) and n not in ("mask", *_FLOAT32_TENSORS))
    precision = f" {tile.precision}" if kind == "fp32" else ""
    seen = "causal" if causal else "unmasked" if mask is None else "boolean mask" if mask == "*u8" else "additive mask"
    return ResourceCase(
        kernel,
        f"{kind}{precision}, head size {width}, {seen}{', first backward' if absent else ''}",
        signature,
        {"CAUSAL": causal, "WIDTH": width, "VALUE_WIDTH": width, **tile.constants()},
        tile.warps,
        tile.stages,
        aligned,
    )
