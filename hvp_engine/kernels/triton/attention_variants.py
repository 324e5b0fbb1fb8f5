"""The variants of the attention kernels that are compiled ahead of time."""

from __future__ import annotations

from typing import Any

import torch

from hvp_engine.kernels.triton.attention_tiling import TF32, Tiling, tiling
from hvp_engine.kernels.triton.resource_case import ResourceCase

__all__ = ["attention_variants"]

_TANGENTS = ("tangent_query", "tangent_key", "out_grad_out")  # absent from the first backward pass
_FLOAT32_TENSORS = ("statistics", "means")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# By kernel, head size, mask and architectures: the quickest on an H100 all the same, and a few bytes on Blackwell.
_SPILLS = {
    ("attention_outputs", 128, None, (90,)): 512,
    ("attention_keys", 128, None, (90,)): 512,
    ("attention_keys", 64, "*u8", (90,)): 32,
    ("attention_queries", 64, None, (100,)): 32,
    ("attention_queries", 128, "*bf16", (80, 90, 100)): 32,
}
_ARCHITECTURES = (80, 90, 100)
_KINDS = (
    ("fp32", 64, None),
    ("tf32", 128, None),
    ("bf16", 64, None),
    ("bf16", 128, None),
    ("fp16", 128, None),
    ("bf16", 64, "*u8"),
    ("bf16", 128, "*u8"),
    ("bf16", 128, "*bf16"),
    ("fp32", 128, "*fp32"),
)


def attention_variants(kernel: Any) -> list[ResourceCase]:
    """List a kernel's variants: by dtype, head size, mask and architecture, and the first backward."""
    cases = []
    for kind, width, mask in _KINDS:
        for tile, architectures in _tilings(kernel.__name__, kind, width, mask):
            cases.append(_variant(kernel, kind, width, tile, architectures, mask))
    if kernel.__name__ != "attention_forward":
        for tile, architectures in _tilings(kernel.__name__, "bf16", 64, None):
            cases.append(_variant(kernel, "bf16", 64, tile, architectures, absent=_TANGENTS))
    return cases


def _tilings(name: str, kind: str, width: int, mask: str | None) -> list[tuple[Tiling, tuple[int, ...]]]:
    found: dict[Tiling, tuple[int, ...]] = {}
    for architecture in _ARCHITECTURES:
        if kind == "tf32":
            tile = TF32.get(name)
        else:
            tile = tiling(name, _DTYPES[kind], width, masked=mask is not None, architecture=architecture)
        if tile is not None:
            found[tile] = (*found.get(tile, ()), architecture)
    return list(found.items())


def _variant(
    kernel: Any,
    kind: str,
    width: int,
    tile: Tiling,
    architectures: tuple[int, ...],
    mask: str | None = None,
    absent: tuple[str, ...] = (),
) -> ResourceCase:
    kind = "fp32" if kind == "tf32" else kind
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
    constants = {"CAUSAL": mask is None, "WIDTH": width, "VALUE_WIDTH": width, **tile.constants()}
    if "PARTS" in kernel.arg_names:
        constants["PARTS"] = width // min(width, 64)
    aligned = tuple(n for n, t in signature.items() if isinstance(t, tuple) and n not in ("mask", *_FLOAT32_TENSORS))
    precision = f" {tile.precision}" if kind == "fp32" else ""
    seen = "causal" if mask is None else "boolean mask" if mask == "*u8" else "additive mask"
    only = "" if architectures == _ARCHITECTURES else "".join(f", sm_{a}" for a in architectures)
    return ResourceCase(
        kernel,
        f"{kind}{precision}, head size {width}, {seen}{', first backward' if absent else ''}{only}",
        signature,
        constants,
        tile.warps,
        tile.stages,
        aligned,
        architectures,
        _SPILLS.get((kernel.__name__, width, mask, architectures), 0),
    )
