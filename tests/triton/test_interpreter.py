"""The interpreter can fail: each kind of wrong kernel is caught, and nothing of it lasts."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from interpreter import MemoryFault, interpreted
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.errors import InterpreterError

from hvp_engine.kernels.triton.resource_case import COMPILE_OPTIONS


@triton.jit
def _scaled(value, factor):
    return value * factor


@triton.jit
def scale(source, target, size, limit, factor: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(source + at, mask=at < limit).to(tl.float32)
    tl.store(target + at, _scaled(value, factor), mask=at < size)


@triton.jit
def add_without_cast(source, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(source + at)
    tl.store(target + at, value + value)


@triton.jit
def sum_without_cast(source, target, BLOCK: tl.constexpr):
    tl.store(target, tl.sum(tl.load(source + tl.arange(0, BLOCK)), axis=0))


@triton.jit
def sum_and_zeros(source, target, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), dtype=tl.float32) + tl.load(source + tl.arange(0, BLOCK)).to(tl.float32)
    tl.store(target, tl.sum(total, axis=0))


@triton.jit
def write_everything_to_the_start(target, BLOCK: tl.constexpr):
    tl.store(target + tl.arange(0, BLOCK) % 2, 1.0)


@triton.jit
def write_program_number(target):
    tl.store(target, tl.program_id(0).to(tl.float32))


@triton.jit
def shift_left(target, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(target + at + 1))


@triton.jit
def dot(left, right, target, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    product = tl.dot(tl.load(left + at), tl.load(right + at), input_precision="ieee")
    tl.store(target + at, product)


@triton.jit
def through_a_table(table, target, size, BLOCK: tl.constexpr):
    source = tl.load(table).to(tl.pointer_type(tl.float32))
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < size, other=0.0), mask=at < size)


@triton.jit
def copy_within_a_tuple(pair, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(pair[1] + at, tl.load(pair[0] + at))


def test_tensors_in_tuples_are_known_and_guarded(interpreter):
    source, target = torch.arange(8.0), torch.empty(8)
    copy_within_a_tuple[(1,)]((source, target), BLOCK=8)
    assert torch.equal(source, target)
    with pytest.raises(InterpreterError, match="outside"):
        copy_within_a_tuple[(1,)]((source, target), BLOCK=16)


def test_a_right_kernel_with_a_device_function_gives_the_right_result(interpreter):
    source = torch.arange(100.0)
    target = torch.empty(100)
    scale[(2,)](source, target, 100, 100, factor=3.0, BLOCK=64)
    assert torch.equal(target, 3 * source)


@pytest.mark.parametrize(("size", "limit", "what"), [(100, 101, "load"), (101, 100, "store")])
def test_an_access_past_the_end_is_caught(interpreter, size, limit, what):
    with pytest.raises(InterpreterError, match=f"{what}: 1 of .* outside"):
        scale[(2,)](torch.ones(100), torch.empty(100), size, limit, factor=3.0, BLOCK=64)


def test_a_view_does_not_open_the_rest_of_its_storage(interpreter):
    storage = torch.ones(200)
    with pytest.raises(InterpreterError, match="outside"):
        scale[(2,)](storage[:99], torch.empty(100), 100, 100, factor=3.0, BLOCK=64)


def test_memory_behind_a_table_must_be_declared(interpreter):
    source, target = torch.arange(5.0), torch.empty(5)
    table = torch.tensor([source.data_ptr()])
    with pytest.raises(InterpreterError, match="outside"):
        through_a_table[(1,)](table, target, 5, BLOCK=8)
    interpreter.reach(source)
    through_a_table[(1,)](table, target, 5, BLOCK=8)
    assert torch.equal(source, target)


def test_what_a_masked_load_leaves_undefined_is_not_zero(interpreter):
    target = torch.zeros(100)
    scale[(2,)](torch.ones(100), target, 100, 98, factor=3.0, BLOCK=64)
    assert target.isnan().tolist() == [False] * 98 + [True] * 2


def test_two_lanes_that_write_to_one_address_are_caught(interpreter):
    with pytest.raises(InterpreterError, match="two lanes"):
        write_everything_to_the_start[(1,)](torch.empty(4), BLOCK=4)


def test_two_programs_that_write_to_one_address_are_caught(interpreter):
    write_program_number[(1,)](torch.empty(1))
    with pytest.raises(MemoryFault, match="two programs store"):
        write_program_number[(2,)](torch.empty(1))


def test_a_program_that_reads_what_another_writes_is_caught(interpreter):
    shift_left[(1,)](torch.empty(5), BLOCK=4)
    with pytest.raises(MemoryFault, match="loads what another one stores"):
        shift_left[(2,)](torch.empty(9), BLOCK=4)


@pytest.mark.parametrize("kernel", [add_without_cast, sum_without_cast])
def test_arithmetic_on_bfloat16_is_refused(interpreter, kernel):
    with pytest.raises(InterpreterError, match="cast to float32"):
        kernel[(1,)](torch.ones(8, dtype=torch.bfloat16), torch.empty(8, dtype=torch.bfloat16), BLOCK=8)


def test_bfloat16_is_read_exactly_and_written_rounded_to_nearest(interpreter):
    torch.manual_seed(0)
    source, target = torch.randn(128).bfloat16(), torch.empty(128, dtype=torch.bfloat16)
    scale[(2,)](source, target, 128, 128, factor=1 / 3, BLOCK=64)
    assert torch.equal(target, (source.float() * torch.tensor(1 / 3)).bfloat16())
    total = torch.empty(1)
    sum_and_zeros[(1,)](source, total, BLOCK=128)
    torch.testing.assert_close(total[0], source.float().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dot_is_exact_in_its_operands(interpreter, dtype):
    torch.manual_seed(0)
    left, right = (torch.randn(16, 16).to(dtype) for _ in range(2))
    target = torch.empty(16, 16)
    dot[(1,)](left, right, target, BLOCK=16)
    torch.testing.assert_close(target, left.float() @ right.float())


def test_kernels_compile_for_a_gpu_after_they_were_interpreted():
    with interpreted():
        scale[(1,)](torch.ones(4), torch.empty(4), 4, 4, factor=3.0, BLOCK=4)
    signature = {"source": "*fp32", "target": "*fp32", "size": "i32", "limit": "i32"}
    constexprs = {"factor": 3.0, "BLOCK": 64}
    source = ASTSource(scale, {**signature, **dict.fromkeys(constexprs, "constexpr")}, constexprs)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=dict(COMPILE_OPTIONS))
    assert ".target sm_80" in compiled.asm["ptx"]
    with pytest.raises(RuntimeError, match="outside of the scope of a kernel"):
        _scaled(1.0, 2.0)
