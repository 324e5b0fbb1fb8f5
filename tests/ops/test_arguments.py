import numpy as np
import pytest
import torch

from hvp_engine import ops
from hvp_engine.errors import ConfigurationError, HvpEngineError

TARGET = torch.tensor([0, 1, 2, 0])
ROWS, ROW, HIDDEN, HEAD = torch.randn(4, 5), torch.randn(5), torch.randn(4, 3), torch.randn(5, 3)
HEADS = torch.randn(2, 3, 4)

# Operation: a call, and its floating-point arguments.
CALLS = {
    "gelu": (ops.gelu, [ROWS]),
    "silu": (ops.silu, [ROWS]),
    "swiglu": (ops.swiglu, [ROWS, ROWS]),
    "softmax": (ops.softmax, [ROWS]),
    "layer_norm": (lambda x, w, b: ops.layer_norm(x, (5,), w, b), [ROWS, ROW, ROW]),
    "rms_norm": (lambda x, w: ops.rms_norm(x, (5,), w), [ROWS, ROW]),
    "cross_entropy": (lambda x, w: ops.cross_entropy(x, TARGET, w), [ROWS, ROW.abs()]),
    "linear_cross_entropy": (
        lambda h, w, b, c: ops.linear_cross_entropy(h, w, TARGET, b, c),
        [HIDDEN, HEAD, ROW, ROW.abs()],
    ),
    "embedding": (lambda w: ops.embedding(TARGET, w), [HEAD]),
    "attention": (ops.attention, [HEADS, HEADS, HEADS]),
    "form_head_curvature": (lambda h, w, b: ops.form_head_curvature(h, w, bias=b), [HIDDEN, HEAD, ROW]),
}
EVERY_ARGUMENT = [(name, place) for name, (_, arguments) in CALLS.items() for place in range(len(arguments))]

MISFITS = {
    "complex numbers": lambda t: torch.complex(t, t),
    "int64": lambda t: (3 * t).long(),
    "bool": lambda t: t > 0,
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "sparse": lambda t: t.to_sparse(),
}


@pytest.mark.parametrize(("name", "place"), EVERY_ARGUMENT)
@pytest.mark.parametrize("misfit", MISFITS)
def test_numbers_that_no_kernel_takes_are_named(name, place, misfit):
    call, arguments = CALLS[name]
    arguments = list(arguments)
    arguments[place] = MISFITS[misfit](arguments[place])
    with pytest.raises(ConfigurationError, match=misfit):
        call(*arguments)


@pytest.mark.parametrize(("name", "place"), EVERY_ARGUMENT)
@pytest.mark.parametrize("value", [1.5, [1.0, 2.0], np.ones(3), "text"], ids=lambda value: type(value).__name__)
def test_what_is_no_tensor_is_told_by_its_type(name, place, value):
    call, arguments = CALLS[name]
    arguments = list(arguments)
    arguments[place] = value
    with pytest.raises(ConfigurationError, match=f"{type(value).__name__}.*must be a tensor"):
        call(*arguments)


@pytest.mark.parametrize(("name", "place"), EVERY_ARGUMENT)
def test_every_other_misfit_gives_a_result_or_an_error_of_ours(name, place):
    call, arguments = CALLS[name]
    value = arguments[place]
    for other in (None, value[:0], value[..., :2], value[None], value.half(), value.to("meta"), torch.tensor(1.0)):
        replaced = list(arguments)
        replaced[place] = other
        try:
            call(*replaced)
        except HvpEngineError as error:
            assert str(error).endswith(".")


def test_the_recommended_conversions_work():
    integers, numbers = torch.arange(20).view(4, 5), torch.complex(ROWS, ROWS)
    assert ops.gelu(integers.float()).dtype == torch.float32
    assert torch.equal(ops.silu(torch.view_as_real(numbers))[..., 0], ops.silu(ROWS))
    assert torch.equal(ops.softmax(ROWS.to_sparse().to_dense()), ops.softmax(ROWS))
    assert ops.gelu(torch.as_tensor([1.0, 2.0])).shape == (2,)


def test_integers_with_a_dtype_to_compute_in_are_taken():
    integers = torch.arange(6).view(2, 3)
    assert torch.equal(ops.softmax(integers, -1, torch.float32), ops.softmax(integers.float()))
