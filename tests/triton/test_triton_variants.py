"""Which sizes make Triton compile a kernel again: those of rows must not; counted without compiling anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from hvp_engine.kernels.records import CrossEntropyRows, NormalizeShape
from hvp_engine.kernels.triton import cross_entropy, normalize, packed_symmetric, softmax

ROWS = (4096, 4095, 4088)  # a multiple of 16, an odd number, and a last chunk
COLUMNS = 32


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Collects the variants that launches ask for."""
    found: set[str] = set()

    def hook(*, key: str, fn: Any, **_: Any) -> bool:
        found.add(f"{fn.name} {key}")
        return True  # known: nothing is compiled or launched

    device = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(type(driver), "active", device)
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", hook)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
    yield found


def softmaxes(rows: int) -> None:
    x = torch.empty(rows, COLUMNS)
    softmax.softmax_forward(x, x)
    softmax.softmax_backward(x, x, x)
    softmax.softmax_double_backward(x, x, x, x, x)
    totals, factor = torch.empty(rows, dtype=torch.float64), torch.empty(rows)
    softmax.softmax_tangent(x, torch.empty(rows, 2), factor, factor, x, totals)


def losses(rows: int) -> None:
    logits, statistics, scale = torch.empty(rows, COLUMNS), torch.empty(rows, 2), torch.empty(rows)
    target = torch.empty(rows, dtype=torch.int64)
    for ignored in (-100, 0, 1):
        given = CrossEntropyRows(logits, target, None, rows, ignored, 0.0)
        cross_entropy.cross_entropy_forward(given, statistics, scale)
        cross_entropy.cross_entropy_backward(given, statistics, scale, logits)
        cross_entropy.cross_entropy_hvp(given, statistics, scale, logits, logits, scale)


def norms(rows: int) -> None:
    x, w, statistics = torch.empty(rows, COLUMNS), torch.empty(COLUMNS), torch.empty(rows, 2)
    shape = NormalizeShape(True, 1, rows, COLUMNS)
    operands = [(x, rows * COLUMNS), (w, COLUMNS), (statistics, 2 * rows), (x, rows * COLUMNS)]
    normalize.normalize_forward(shape, 1e-5, *operands[:2], operands[1], x, statistics)
    normalize.normalize_backward(shape, operands, x, w, w)


def packed(rows: int) -> None:
    weight, center = torch.empty(rows, 4), torch.empty(4)
    for first in (0, 1, 5):
        packed_symmetric.pair_products(weight, center, first, first + 4, torch.empty(rows, 4))


@pytest.mark.parametrize(("launch", "kernels"), [(softmaxes, 4), (losses, 3), (norms, 3), (packed, 1)])
def test_the_number_of_rows_makes_no_variants(compiled: set[str], launch: Callable[[int], None], kernels: int) -> None:
    for rows in ROWS:
        launch(rows)
    assert len(compiled) == kernels, sorted(compiled)


def test_columns_that_allow_wide_loads_have_a_variant_of_their_own(compiled: set[str]) -> None:
    for columns in (4096, 4100):
        x = torch.empty(2, columns)
        softmax.softmax_forward(x, x)
    assert len(compiled) == 2
