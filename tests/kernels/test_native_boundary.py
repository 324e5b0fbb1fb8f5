"""A wrong argument of the compiled extension is an exception, and never the end of the process."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from native_examples import examples
from native_fuzz import fuzz

import hvp_engine
from hvp_engine.kernels.loader import native

STUB = Path(hvp_engine.__file__).with_name("_native.pyi")
NO_ARGUMENTS = {"isa", "num_threads", "trim_heap", "cuda_why_not", "ProjectionPlan", "RecordPlan"}


def names_of_the_extension():
    return {name for name, value in vars(native).items() if callable(value) and not name.startswith("__")}


@pytest.mark.parametrize("name", sorted(names_of_the_extension()))
def test_no_wrong_argument_ends_the_process_or_is_accepted(name):
    assert name in examples(native), f"tests/native_examples.py has no valid call of {name}; add one"
    calls = fuzz(native.__file__, "_native", name)
    assert calls >= (1 if name in NO_ARGUMENTS else 18)


def test_the_stub_names_what_the_extension_has():
    nodes = ast.parse(STUB.read_text()).body
    named = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    built = {name for name in named if native.cuda_built or not name.startswith(("cuda_", "ProjectionPlan", "RecordP"))}
    assert built == names_of_the_extension()


def test_messages_name_the_argument_and_what_is_wrong_with_it():
    for arguments, message in (
        ((0, 0, 3, 5, 4096), "address of input is null"),
        ((0, 4097, 3, 5, 4096), "address of input is not a multiple of 4 bytes"),
        ((1, 4100, 3, 5, 4096), "address of input is not a multiple of 8 bytes"),
        ((0, 1 << 47, 3, 5, 4096), "address of input and its sizes lead out of the memory"),
        ((0, 4096, 1 << 23, 1 << 23, 4096), "address of input and its sizes lead out of the memory"),
        ((0, 4096, -3, 5, 4096), "must not be negative, and one is -3"),
        ((0, 4096, 1 << 62, 5, 4096), "4611686018427387904 elements"),
        ((0, 4096, 1 << 40, 1 << 40, 4096), "1099511627776 x 1099511627776 elements"),
        ((7, 4096, 3, 5, 4096), "Dtype number 7 is not allowed here; use 0 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            native.softmax_forward(*arguments)


def test_nothing_to_do_is_done_at_any_address():
    native.softmax_forward(0, 0, 0, 5, 0)
    native.softmax_forward(0, 0, 5, 0, 0)
    native.softmax_backward(0, 0, 0, 0, 0, 5, 0)
    native.activation_forward(0, 0, 3, 0, 0, 0, 0)
    native.embedding_backward(0, 0, 0, 0, 0, 0, 5, 0)
    native.packed_symmetric_matvec(0, 0, 0, 2, 0, 3, 0)
    native.pair_products(0, 0, 0, 5, 0, 0, 0, 0)
