"""The recorded Lanczos step of hvp_engine.kernels.lanczos_step: the decision per stream, then the new vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from hvp_engine.kernels.streams import LanczosState, NewVector, Step
from hvp_engine.kernels.tensors import address
from hvp_engine.kernels.triton.resource_case import ResourceCase
from hvp_engine.kernels.triton.rows import launch

__all__ = ["record_step", "resource_cases"]

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float64: tl.float64}
_STREAMS = 128
_TILE = 1024
_WARPS = 4
_LARGEST = torch.finfo(torch.float64).max


@triton.jit(do_not_specialize=["count", "stride", "alpha_stride", "position", "tolerance"])
def decide_step(
    members,
    alpha,
    beta,
    lost,
    alphas,
    betas,
    steps,
    live,
    losts,
    norms,
    last,
    divisors,
    count,
    stride,
    alpha_stride,
    position,
    tolerance: tl.float64,
    LARGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Keep alpha, beta and flags, one lane per stream; divisors (count,) is beta, or 0 for a stream that ended."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    s = tl.load(members + index, mask=inside, other=0)
    a = tl.load(alpha + index * alpha_stride, mask=inside, other=0.0)
    b = tl.load(beta + index, mask=inside, other=0.0)
    is_live = inside & (tl.load(live + s, mask=inside, other=0) != 0)
    at = s * stride + position
    size = tl.abs(a) + b + tl.load(betas + at - 1, mask=is_live & (position > 0), other=0.0)
    norm = tl.load(norms + s, mask=is_live, other=0.0)
    norm = tl.where(size > norm, size, norm)
    finite = (tl.abs(a) <= LARGEST) & (b <= LARGEST)
    taken = tl.load(last + s, mask=inside, other=0) <= position + 1
    exhausted = finite & (b <= tolerance * norm)
    goes_on = is_live & finite & (exhausted == 0) & (taken == 0)
    largest = tl.load(losts + s, mask=is_live, other=0.0)
    this = tl.load(lost + index, mask=is_live, other=0.0)
    tl.store(norms + s, norm, mask=is_live)
    tl.store(alphas + at, a, mask=is_live)
    tl.store(betas + at, b, mask=is_live & (exhausted == 0))
    tl.store(steps + s, position + 1, mask=is_live)
    tl.store(losts + s, tl.where(this <= largest, largest, this), mask=is_live)
    tl.store(live + s, goes_on.to(tl.uint8), mask=inside)
    tl.store(divisors + index, tl.where(goes_on, b, 0.0), mask=inside)


@triton.jit
def scale_vectors(
    table, owners, divisors, VECTOR: tl.constexpr, STORE: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr
):
    """Scale one tile of one stream's next vector.

    A row of table, (vectors, 7) int64, has the addresses of the vector, of its row in the store and of that in the
    window (0 where there is none), its size, its first task, the place of its divisor, and its tasks.
    """
    task = tl.program_id(0).to(tl.int64)
    entry = table + tl.load(owners + task) * 7
    vector = tl.load(entry).to(tl.pointer_type(VECTOR))
    to_store = tl.load(entry + 1)
    to_window = tl.load(entry + 2)
    store = to_store.to(tl.pointer_type(STORE))
    window = to_window.to(tl.pointer_type(VECTOR))
    size = tl.load(entry + 3)
    if ALIGNED:
        vector = tl.multiple_of(vector, 16)
        store = tl.multiple_of(store, 16)
        window = tl.multiple_of(window, 16)
        size = tl.multiple_of(size, 16)
    divisor = tl.load(divisors + tl.load(entry + 5))
    column = (task - tl.load(entry + 4)) * TILE + tl.arange(0, TILE)
    inside = column < size
    value = tl.load(vector + column, mask=inside, other=0.0).to(tl.float64)
    scaled = tl.where(divisor > 0.0, value / divisor, 0.0).to(VECTOR)
    tl.store(store + column, scaled.to(STORE), mask=inside & (to_store != 0))
    tl.store(window + column, scaled, mask=inside & (to_window != 0))


def record_step(state: LanczosState, step: Step, vectors: Sequence[NewVector]) -> None:
    """Record a step in the state, and write the next Lanczos vectors, on the device's current stream.

    Args:
        state: As in `hvp_engine.kernels.lanczos_step.record_step`.
        step: As there.
        vectors: As there.
    """
    device, count = state.alphas.device, len(step.members)
    divisors = torch.empty(count, dtype=torch.float64, device=device)
    # From pageable memory these copies are staged at once: neither the host nor the device waits.
    members = torch.tensor(step.members, dtype=torch.int64).to(device, non_blocking=True)
    arguments = (
        members, step.alphas, step.betas, step.lost, state.alphas, state.betas, state.steps,
        state.live.view(torch.uint8), state.lost, state.norms, state.last, divisors, count, state.alphas.stride(0),
        step.alphas.stride(0), step.position, step.tolerance,
    )  # fmt: skip
    constants = {"LARGEST": _LARGEST, "BLOCK": _STREAMS, "num_warps": _WARPS}
    launch(decide_step, triton.cdiv(count, _STREAMS), *arguments, **constants)
    if vectors:
        _scale(vectors, divisors)


def _scale(vectors: Sequence[NewVector], divisors: torch.Tensor) -> None:
    fields = np.array(
        [(v.vector.data_ptr(), address(v.store), address(v.window), v.vector.numel(), 0, v.place, 0) for v in vectors],
        dtype=np.int64,
    )
    tasks = -(-fields[:, 3] // _TILE)
    fields[:, 4], fields[:, 6] = np.cumsum(tasks) - tasks, tasks
    num_tasks = int(tasks.sum())
    table = torch.from_numpy(fields).to(divisors.device, non_blocking=True)
    vector, store = vectors[0].vector, vectors[0].store
    launch(
        scale_vectors,
        num_tasks,
        table,
        torch.repeat_interleave(table[:, 6], output_size=num_tasks),
        divisors,
        VECTOR=_TYPES[vector.dtype],
        STORE=_TYPES[vector.dtype if store is None else store.dtype],
        ALIGNED=bool((fields[:, :4] % 16 == 0).all()),
        TILE=_TILE,
        num_warps=_WARPS,
    )


def resource_cases() -> list[ResourceCase]:
    """Declare the decision, and the new vectors for each pair of types that Lanczos uses."""
    doubles = dict.fromkeys(("alpha", "beta", "lost", "alphas", "betas", "losts", "norms", "divisors"), "*fp64")
    signature = {**doubles, **dict.fromkeys(("members", "steps", "last"), "*i64"), "live": "*u8"}
    signature |= {**dict.fromkeys(("count", "stride", "alpha_stride", "position"), "i32"), "tolerance": "fp64"}
    signature = {name: signature[name] for name in decide_step.arg_names if name in signature}
    aligned = tuple(name for name, kind in signature.items() if kind.startswith("*") and name != "alpha")
    constants = {"LARGEST": _LARGEST, "BLOCK": _STREAMS}
    cases = [ResourceCase(decide_step, "all types", signature, constants, _WARPS, aligned=aligned)]
    signature = {"table": "*i64", "owners": "*i64", "divisors": "*fp64"}
    for vector, store in ((tl.float32, tl.float32), (tl.float32, tl.bfloat16), (tl.float64, tl.float64)):
        for is_aligned in (True, False):
            constants = {"VECTOR": vector, "STORE": store, "ALIGNED": is_aligned, "TILE": _TILE}
            label = f"{vector} vector, {store} store{'' if is_aligned else ', unaligned'}"
            cases.append(ResourceCase(scale_vectors, label, signature, constants, _WARPS))
    return cases
