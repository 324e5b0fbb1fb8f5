import math

import pytest
import torch
import torch.nn.functional as F
from op_derivatives import all_derivatives, assert_error_within_twice_the_plain_one, double, with_threads
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops import gelu, gelu_ref, silu, silu_ref, swiglu, swiglu_ref

# Forward-mode differentiation makes torch itself use its deprecated scripting.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

UNARY = {
    "gelu": (gelu, gelu_ref),
    "gelu_tanh": (lambda x: gelu(x, "tanh"), lambda x: gelu_ref(x, "tanh")),
    "silu": (silu, silu_ref),
}
OPS = {name: (1, *pair) for name, pair in UNARY.items()} | {"swiglu": (2, swiglu, swiglu_ref)}
SIZES = [(1,), (2,), (31,), (129,), (4097,), (3, 1025)]


@pytest.mark.parametrize("name", OPS)
def test_first_and_second_derivatives_match_finite_differences(name):
    count, function, _ = OPS[name]
    inputs = tuple(double(3, 5, seed=i) for i in range(count))
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_error_is_at_most_twice_that_of_plain_pytorch(name, dtype, size):
    count, function, ref = OPS[name]
    values = [double(*size, seed=i).to(dtype) * 2 for i in range(2 * count + 1)]
    inputs, g, cotangents = values[:count], values[count], values[count + 1 :]
    kernel = all_derivatives(function, inputs, g, cotangents)
    plain = all_derivatives(ref, inputs, g, cotangents)
    wide = [[v.double() for v in part] for part in (inputs, [g], cotangents)]
    exact = all_derivatives(ref, wide[0], wide[1][0], wide[2])
    assert all(mine.dtype == dtype and mine.shape == torch.Size(size) for mine in kernel)
    assert_error_within_twice_the_plain_one(kernel, plain, exact)


@pytest.mark.parametrize("name", UNARY)
def test_extreme_arguments_give_limits_and_keep_nan(name):
    function = UNARY[name][0]
    x = torch.tensor([-1e30, -200.0, -1e-30, 0.0, 1e-30, 200.0, 1e30, math.nan], requires_grad=True)
    (dx,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(dx.sum(), x)
    torch.testing.assert_close(dx[:-1], torch.tensor([0, 0, 0.5, 0.5, 0.5, 1, 1.0]))
    assert second[[0, 1, 5, 6]].eq(0).all()
    assert function(x)[-1].isnan() and dx[-1].isnan() and second[-1].isnan()


@pytest.mark.parametrize("name", OPS)
def test_non_contiguous_inputs_and_cotangents_give_the_same_values(name):
    count, function, _ = OPS[name]
    inputs = [double(6, 5, 4, seed=i).transpose(0, 2)[:, ::2] for i in range(count)]
    g = double(1, 3, 1, seed=8).expand(4, 3, 6)
    cotangents = [double(4, 1, 6, seed=9 + i).expand(4, 3, 6) for i in range(count)]
    strided = all_derivatives(function, inputs, g, cotangents)
    dense = all_derivatives(
        function, [x.contiguous() for x in inputs], g.contiguous(), [u.contiguous() for u in cotangents]
    )
    for mine, theirs in zip(strided, dense, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", OPS)
def test_every_thread_count_gives_the_same_bits(name):
    count, function, _ = OPS[name]
    values = [double(77, 1031, seed=i).float() for i in range(2 * count + 1)]
    results = with_threads(
        (1, 2, 3),
        lambda: all_derivatives(function, values[:count], values[count], values[count + 1 :]),
    )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", UNARY)
def test_hessians_of_all_torch_func_orders_agree(name):
    function, ref = UNARY[name]
    x = double(7).detach()

    def loss(f):
        return lambda x: f(x * x.sum()).pow(2).sum()

    expected = hessian(loss(ref))(x)
    for order in (
        hessian,
        lambda f: jacrev(jacrev(f)),
        lambda f: jacrev(jacfwd(f)),
        lambda f: jacfwd(jacfwd(f)),
    ):
        torch.testing.assert_close(order(loss(function))(x), expected)
    torch.testing.assert_close(vjp(function, x)[1](x)[0], vjp(ref, x)[1](x)[0])
    torch.testing.assert_close(jvp(function, (x,), (x,)), jvp(ref, (x,), (x,)))
    torch.testing.assert_close(vmap(grad(loss(function)))(x[:, None]), vmap(grad(loss(ref)))(x[:, None]))


def test_vmap_over_either_operand_of_swiglu_matches_a_loop():
    a, b = double(3, 2, 5).detach(), double(2, 3, 5, seed=1).detach()

    def hvp(f, a, b):
        return jvp(grad(lambda a, b: f(a, b).pow(2).sum(), (0, 1)), (a, b), (b, a))[1]

    for dims in ((0, 1), (0, None), (None, 1)):
        x = a if dims[0] is not None else a[0]
        y = b if dims[1] is not None else b[:, 0]
        ours = vmap(lambda a, b: hvp(swiglu, a, b), dims)(x, y)
        torch.testing.assert_close(ours, vmap(lambda a, b: hvp(swiglu_ref, a, b), dims)(x, y))
        torch.testing.assert_close(vmap(swiglu, dims)(x, y), vmap(swiglu_ref, dims)(x, y))


@pytest.mark.parametrize("name", OPS)
def test_batched_gradients_match_a_loop(name):
    count, function, _ = OPS[name]
    inputs = [double(4, 3, seed=i) for i in range(count)]
    g = double(4, 3, seed=5)
    first = torch.autograd.grad(function(*inputs), inputs, g, create_graph=True)
    u = double(6, 4, 3, seed=7).detach()
    batched = torch.autograd.grad(first[0], [g, *inputs], u, is_grads_batched=True, retain_graph=True)
    for i in range(len(u)):
        single = torch.autograd.grad(first[0], [g, *inputs], u[i], retain_graph=True)
        for mine, theirs in zip(batched, single, strict=True):
            torch.testing.assert_close(mine[i], theirs)


@pytest.mark.parametrize("name", OPS)
def test_checkpointed_second_derivatives_are_the_same(name):
    count, function, _ = OPS[name]
    inputs = [double(3, 5, seed=i) for i in range(count)]

    def second(f):
        first = torch.autograd.grad(f(*inputs).pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(d.pow(2).sum() for d in first), inputs)

    plain = second(function)
    again = second(lambda *args: checkpoint(function, *args, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_autocast_keeps_the_dtypes_of_pytorch():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(4, 4, dtype=dtype)
            assert gelu(x).dtype == F.gelu(x).dtype
            assert silu(x).dtype == F.silu(x).dtype


@pytest.mark.parametrize("name", OPS)
def test_derivatives_inside_a_model_under_autocast_are_those_of_plain_pytorch(name):
    count, function, ref = OPS[name]
    leaves = [double(8, 8, seed=i).detach().float().requires_grad_() for i in range(count + 1)]

    def second(f):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = f(*(leaves[0] @ w for w in leaves[1:]))
            value = (y @ leaves[1]).float().pow(2).sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        return [y, *first, *torch.autograd.grad(sum(d.pow(2).sum() for d in first), leaves)]

    for ours, theirs in zip(second(function), second(ref), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2 * theirs.abs().max().item())


def test_swiglu_under_autocast_promotes_as_plain_pytorch():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for gate in (torch.float32, torch.bfloat16):
            for up in (torch.float32, torch.bfloat16):
                a, b = torch.ones(3, dtype=gate), torch.ones(3, dtype=up)
                assert swiglu(a, b).dtype == swiglu_ref(a, b).dtype == (F.silu(a) * b).dtype


def test_dtypes_without_kernel_and_empty_tensors_take_the_reference():
    x = torch.randn(4).half()
    assert torch.equal(gelu(x), F.gelu(x)) and torch.equal(silu(x), F.silu(x))
    assert swiglu(torch.ones(3), torch.ones(3).bfloat16()).dtype == torch.float32
    assert gelu(torch.empty(0, 3)).shape == (0, 3)


def test_swiglu_broadcasts_its_operands():
    a, b = double(3, 1, 5), double(4, 1, seed=1)
    torch.testing.assert_close(swiglu(a, b), swiglu_ref(a, b))
    ours = torch.autograd.grad(swiglu(a, b).pow(2).sum(), (a, b))
    torch.testing.assert_close(ours, torch.autograd.grad(swiglu_ref(a, b).pow(2).sum(), (a, b)))


def test_an_unknown_approximation_is_refused():
    with pytest.raises(ConfigurationError, match="approximate"):
        gelu(torch.randn(3), "sigmoid")


def test_a_traced_function_records_plain_operations():
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.randn(5)
    traced = make_fx(lambda x: silu(x) + gelu(x))(x)
    torch.testing.assert_close(traced(x + 1), F.silu(x + 1) + F.gelu(x + 1))
