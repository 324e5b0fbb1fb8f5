"""Stage 4: attention at the sizes of GPT-2: passes, their kernels one by one, PyTorch's own paths, other tilings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hvp_engine.kernels.attention import (
    AttentionCounts,
    attention_backward,
    attention_forward,
    attention_second,
    counts_of,
    counts_on,
    statistics_like,
)
from hvp_engine.kernels.records import AttentionInputs, AttentionSizes
from hvp_engine.kernels.registry import implementation
from hvp_engine.ops.attention import attention_ref
from hvp_engine.problem.precision import Precision, product_mode

from .clock import Clock, free, tried
from .measuring import Timer
from .runner import Emit

SECONDS = 47.0
SHAPE = (8, 12, 1024, 64)  # batch, heads, length, head size
_SMALL = (1, 2, 32, 16)
_PRECISIONS: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}


@dataclass
class Case:
    """Operands of attention, laid out as linear layers leave them, and its passes by the device's kernels."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    device: torch.device
    x: AttentionInputs = field(init=False)
    grad_out: Tensor = field(init=False)
    tangents: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        query, key, value, self.grad_out, *self.tangents = (self._draw() for _ in range(7))
        self.x = AttentionInputs(query, key, value, None, statistics_like(query), self.shape[-1] ** -0.5, True)
        attention_forward(self.x)

    def _draw(self) -> Tensor:
        batch, heads, length, width = self.shape
        drawn = torch.randn(batch, length, heads, width, device=self.device)
        return drawn.to(self.dtype).transpose(1, 2)

    @property
    def passes(self) -> dict[str, Callable[[], list[Tensor]]]:
        """The three passes by the kernels of the device."""
        return {
            "forward": lambda: [attention_forward(self.x)],
            "backward": lambda: attention_backward(self.x, self.grad_out, (True,) * 3),
            "second": lambda: attention_second(self.x, self.grad_out, self.tangents, (True,) * 4),
        }

    def products(self, counts: AttentionCounts) -> dict[str, int]:
        """Count the products of a tile of scores in every pass, in which everything is wanted."""
        batch, heads, length, width = self.shape
        sizes = AttentionSizes(self.dtype, batch, heads, heads, length, length, width, width)
        work = {
            "forward": counts.forward(sizes),
            "backward": counts.backward((True,) * 3, sizes),
            "second": counts.second((True,) * 3, (True,) * 4, sizes),
        }
        return {name: found.products for name, found in work.items()}

    def tflop(self, products: int) -> float:
        """Operations of so many products of the tiles that a causal mask leaves."""
        return 1e-12 * products * math.prod(self.shape) * self.shape[2]


def run(emit: Emit, device: torch.device, small: bool) -> None:
    """Measure the passes in every precision, then what the tilings of the kernels might be."""
    free()
    clock, timer = Clock(SECONDS), Timer(device, small)
    shape = _SMALL if small else SHAPE
    for precision, dtype in _PRECISIONS.items():
        with product_mode(precision):
            case = Case(shape, dtype, device)
            _passes(emit, timer, case, precision)
            _kernels(emit, timer, case, precision)
            _plain(emit, timer, case, precision)
    if not hasattr(implementation("attention", device), "tiling"):
        return
    from .tilings import try_arithmetic, try_tilings

    for precision, dtype in _PRECISIONS.items():
        with product_mode(precision):
            case = Case(shape, dtype, device)
            if precision == "fp32":
                try_arithmetic(emit, timer, clock, case)
            else:
                try_tilings(emit, timer, clock, case, precision)


def _passes(emit: Emit, timer: Timer, case: Case, precision: str) -> None:
    """Emit the passes' rates by the products that they need, which the native kernels form, and by their kernels'."""
    needed = case.products(counts_of("native"))
    formed = case.products(counts_on(case.device) or counts_of("native"))
    for name in ("second", "backward", "forward"):
        what = f"{name}, {precision}"
        with tried(emit, what):
            ms = timer.ms(case.passes[name])
            emit(
                what=what,
                ms=ms,
                tflops=case.tflop(needed[name]) / ms * 1e3,
                tflops_of_kernels=case.tflop(formed[name]) / ms * 1e3,
                shape=str(case.shape),
            )


def _kernels(emit: Emit, timer: Timer, case: Case, precision: str) -> None:
    """Emit the times of the kernels that the second backward pass launches."""
    if not hasattr(implementation("attention", case.device), "tiling"):
        return
    from .tilings import launches

    with tried(emit, f"kernels of second, {precision}"):
        for name, launch in launches(case.passes["second"]).items():
            emit(what=f"kernel {name}, {precision}", ms=timer.ms(launch))


def _plain(emit: Emit, timer: Timer, case: Case, precision: str) -> None:
    """Emit the times of PyTorch's own ways, and how far the kernels' results are from those of the plain formula."""
    x = case.x
    leaves = [t.detach().requires_grad_() for t in (x.query, x.key, x.value)]
    grad_out = case.grad_out.detach().requires_grad_()
    for path, function in _functions(precision).items():
        with tried(emit, f"{path}, {precision}"):
            out = function(*leaves)
            emit(what=f"{path} forward, {precision}", ms=timer.ms(partial(function, *leaves)))
            if path == "flash":
                continue
            first = partial(torch.autograd.grad, out, leaves, grad_out, retain_graph=True)
            emit(what=f"{path} backward, {precision}", ms=timer.ms(first))
            gradients = torch.autograd.grad(out, leaves, grad_out, create_graph=True)
            second = partial(torch.autograd.grad, gradients, [*leaves, grad_out], case.tangents, retain_graph=True)
            difference = relative(case.passes["second"](), second())
            emit(what=f"{path} second, {precision}", ms=timer.ms(second), difference=difference)


def _functions(precision: str) -> dict[str, Callable[..., Tensor]]:
    def by(backend: SDPBackend, *operands: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*operands, is_causal=True)

    found: dict[str, Callable[..., Tensor]] = {
        "plain formula": lambda *operands: attention_ref(*operands, is_causal=True),
        "math": partial(by, SDPBackend.MATH),
    }
    return {**found, "flash": partial(by, SDPBackend.FLASH_ATTENTION)} if precision == "bf16" else found


def relative(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference of tensors, relative to the norm of each."""
    pairs: Iterator[tuple[Tensor, Tensor]] = zip(found, wanted, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)
