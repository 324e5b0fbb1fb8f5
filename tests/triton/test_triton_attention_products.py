"""The counted tile products of the Triton attention kernels against the products that their programs form."""

from __future__ import annotations

from itertools import product
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter as own

from hvp_engine.kernels.attention import (
    attention_backward,
    attention_forward,
    attention_second,
    counts_on,
    statistics_like,
)
from hvp_engine.kernels.records import AttentionInputs, AttentionSizes
from hvp_engine.kernels.triton import attention as launcher
from hvp_engine.kernels.triton.attention_tiling import matrix_strip

ROWS = 16  # one tile of scores, whatever the tiling
ALL = (True,) * 4


def inputs(width, dtype, rows=ROWS):
    query, key, value = (torch.randn(1, 1, rows, width, dtype=dtype) for _ in range(3))
    return AttentionInputs(query, key, value, None, statistics_like(query), width**-0.5, causal=False)


class Formed:
    """Counts launches, and products of a tile of scores with as many columns as a head has."""

    def __init__(self, width):
        self.width, self.products, self.launches = width, 0.0, 0
        self._multiplied = 0

    def __enter__(self):
        dot, launch = own.InterpreterBuilder.create_dot, launcher._launch

        def counted_dot(builder, left, right, *rest):
            self._multiplied += left.data.shape[0] * left.data.shape[1] * right.data.shape[1]
            return dot(builder, left, right, *rest)

        def counted_launch(kernel, x, *rest):
            self._multiplied = 0
            launch(kernel, x, *rest)
            tile = launcher.tiling(kernel.__name__, x.query.dtype, self.width, masked=False, architecture=80)
            self.products += self._multiplied / (tile.queries * tile.keys * self.width)
            self.launches += 1

        self._patches = (
            patch.object(own.InterpreterBuilder, "create_dot", counted_dot),
            patch.object(launcher, "_launch", counted_launch),
        )
        for each in self._patches:
            each.start()
        return self

    def __exit__(self, *_):
        for each in self._patches:
            each.stop()

    def agrees(self, work):
        return (self.products, self.launches) == (work.products, work.launches)


def counted(width, dtype, rows=ROWS):
    sizes = AttentionSizes(dtype, 1, 1, 1, rows, rows, width, width)
    return counts_on(torch.device("cpu")), sizes


TILED = [(64, torch.bfloat16), (128, torch.bfloat16)]  # the derivatives of float32 are formed from whole matrices


@pytest.mark.parametrize(("width", "dtype"), [*TILED, (64, torch.float32)], ids=str)
def test_the_forward_pass_forms_what_is_counted(on_triton, width, dtype):
    counts, sizes = counted(width, dtype)
    with Formed(width) as formed:
        attention_forward(inputs(width, dtype))
    assert formed.agrees(counts.forward(sizes))


@pytest.mark.parametrize(("width", "dtype"), TILED, ids=str)
def test_the_backward_pass_forms_what_is_counted(on_triton, width, dtype):
    counts, sizes = counted(width, dtype)
    x = inputs(width, dtype)
    cases = [w for w in product((False, True), repeat=3) if any(w)]
    for wanted in cases if width == 64 else cases[-1:]:
        with Formed(width) as formed:
            attention_backward(x, torch.randn_like(x.query), wanted)
        assert formed.agrees(counts.backward(wanted, sizes)), wanted


@pytest.mark.parametrize(("width", "dtype"), TILED, ids=str)
def test_the_backward_of_the_backward_forms_what_is_counted(on_triton, width, dtype):
    counts, sizes = counted(width, dtype)
    x = inputs(width, dtype)
    few = [tuple(i == one for i in range(4)) for one in range(4)] + [(True, True, False, False), ALL]
    cases = list(product(product((False, True), repeat=3), few))
    for given, wanted in cases if width == 64 else [cases[-1]]:
        with Formed(width) as formed:
            tangents = [torch.randn_like(x.query) if each else None for each in given]
            attention_second(x, torch.randn_like(x.query), tangents, wanted)
        assert formed.agrees(counts.second(given, wanted, sizes)), (given, wanted)


class MatrixProducts(TorchDispatchMode):
    """Counts the library's products of batches of matrices."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.baddbmm, torch.ops.aten.baddbmm_)
        return func(*args, **(kwargs or {}))


def test_whole_matrices_take_the_products_that_are_counted(on_triton):
    rows, width = 128, 16
    counts, sizes = counted(width, torch.float32, rows)
    assert matrix_strip(torch.float32, 1, 1, 1, rows, rows) is not None
    x = inputs(width, torch.float32, rows)
    full = ((True,) * 3, ALL)
    cases = [full, ((True, False, False), ALL), ((False, True, True), (True, False, False, True))]
    for given, wanted in cases:
        tangents = [torch.randn_like(x.query) if each else None for each in given]
        with MatrixProducts() as formed:
            attention_second(x, torch.randn_like(x.query), tangents, wanted)
        work = counts.second(given, wanted, sizes)
        at_once = given[0] and given[1]
        assert (formed.count + at_once, formed.count + 1) == (work.products, work.launches), (given, wanted)
    assert counts.second(*full, sizes).products == 12
