import pytest
import torch
import torch.nn.functional as F
from op_derivatives import all_derivatives, assert_error_within_twice_the_plain_one, double, with_threads
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops import layer_norm, layer_norm_ref, rms_norm, rms_norm_ref

# Forward-mode differentiation makes torch itself use its deprecated scripting.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

EPS = 0.1  # large: rows of one or two elements are then well conditioned
KINDS = {
    "layer_norm": (
        lambda x, *p: layer_norm(x, x.shape[-1:], *p, eps=EPS),
        lambda x, *p: layer_norm_ref(x, x.shape[-1:], *p, eps=EPS),
    ),
    "rms_norm": (
        lambda x, *p: rms_norm(x, x.shape[-1:], *p[:1], eps=EPS),
        lambda x, *p: rms_norm_ref(x, x.shape[-1:], *p[:1], eps=EPS),
    ),
}
PARAMETERS = {"layer_norm": 2, "rms_norm": 1}
SIZES = [(500, 2), (31, 31), (129, 129), (3, 4097), (2, 3, 64), (700, 40)]


def spelled_out(kind):
    """Plain arithmetic: torch.func differentiates it correctly twice, unlike torch 2.13's own layer_norm."""

    def function(x, *parameters):
        if kind == "layer_norm":
            x = x - x.mean(-1, keepdim=True)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
        for index, parameter in enumerate(parameters):
            y = y + parameter if index else y * parameter
        return y

    return function


def make_inputs(kind, size, dtype=torch.double):
    count = PARAMETERS[kind]
    return [double(*size).to(dtype), *(double(size[-1], seed=i + 1).to(dtype) for i in range(count))]


def make_cotangents(kind, size, dtype=torch.double):
    parameters = [double(size[-1], seed=i + 21).to(dtype) for i in range(PARAMETERS[kind])]
    return double(*size, seed=11).to(dtype), [double(*size, seed=20).to(dtype), *parameters]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parameters", [0, 1, 2])
def test_first_and_second_derivatives_match_finite_differences(kind, parameters):
    inputs = tuple(make_inputs(kind, (3, 5))[: 1 + parameters])
    function = KINDS[kind][0]
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_error_is_at_most_twice_that_of_plain_pytorch(kind, dtype, size):
    function, ref = KINDS[kind]
    inputs = make_inputs(kind, size, dtype)
    g, cotangents = make_cotangents(kind, size, dtype)
    kernel = all_derivatives(function, inputs, g, cotangents)
    plain = all_derivatives(ref, inputs, g, cotangents)
    exact = all_derivatives(ref, [x.double() for x in inputs], g.double(), [u.double() for u in cotangents])
    assert all(mine.dtype == theirs.dtype for mine, theirs in zip(kernel, plain, strict=True))
    assert_error_within_twice_the_plain_one(kernel, plain, exact)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_one_element_cancel_up_to_rounding(kind, dtype):
    inputs = make_inputs(kind, (1, 1), dtype)
    g, cotangents = make_cotangents(kind, (1, 1), dtype)
    kernel, plain = (all_derivatives(f, inputs, g, cotangents) for f in KINDS[kind])
    for mine, theirs in zip(kernel, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_magnitudes_and_offsets_obey_the_error_rule(kind, scale, offset):
    function, ref = KINDS[kind]
    inputs = make_inputs(kind, (9, 257), torch.float32)
    inputs[0] = ((inputs[0] + offset) * scale).detach()
    g, cotangents = make_cotangents(kind, (9, 257), torch.float32)
    kernel = all_derivatives(function, inputs, g, cotangents)
    plain = all_derivatives(ref, inputs, g, cotangents)
    exact = all_derivatives(ref, [x.double() for x in inputs], g.double(), [u.double() for u in cotangents])
    assert_error_within_twice_the_plain_one(kernel, plain, exact)


def test_bfloat16_inputs_take_float32_parameters():
    inputs = make_inputs("layer_norm", (33, 64), torch.float32)
    x = inputs[0].detach().bfloat16().requires_grad_()
    y = layer_norm(x, (64,), *inputs[1:])
    grads = torch.autograd.grad(y.float().pow(2).sum(), [x, *inputs[1:]], create_graph=True)
    assert [y.dtype, *(d.dtype for d in grads)] == [torch.bfloat16] * 2 + [torch.float32] * 2
    wide = x.detach().float().requires_grad_()
    expected = torch.autograd.grad(layer_norm_ref(wide, (64,), *inputs[1:]).pow(2).sum(), inputs[1])[0]
    torch.testing.assert_close(grads[1], expected, rtol=2e-2, atol=1e-1)
    second = torch.autograd.grad(grads[0].float().pow(2).sum(), [x, inputs[1]])
    assert [d.dtype for d in second] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_span_several_dimensions_and_any_strides(kind):
    function = layer_norm if kind == "layer_norm" else rms_norm
    x, w = double(4, 6, 5).transpose(0, 2), double(6, 4, seed=1)
    ours = [function(x, (6, 4), w)]
    flat = [function(x.reshape(5, 24), (24,), w.reshape(24)).reshape(5, 6, 4)]
    ours += torch.autograd.grad(ours[0].pow(2).sum(), (x, w))
    flat += torch.autograd.grad(flat[0].pow(2).sum(), (x, w))
    assert all(torch.equal(a, b) for a, b in zip(ours, flat, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_every_thread_count_gives_the_same_bits(kind):
    inputs = make_inputs(kind, (5000, 67), torch.float32)
    g, cotangents = make_cotangents(kind, (5000, 67), torch.float32)
    results = with_threads((1, 2, 3), lambda: all_derivatives(KINDS[kind][0], inputs, g, cotangents))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [hessian, lambda f, n: jacrev(jacrev(f, n), n), lambda f, n: jacrev(jacfwd(f, n), n)])
def test_hessians_of_torch_func_match_plain_arithmetic(kind, order):
    x, *parameters = (t.detach() for t in make_inputs(kind, (3, 4)))
    target = double(3, 4, seed=9).detach()

    def loss(function):
        return lambda x, *p: (function(x, *p) * target).pow(3).sum()

    numbers = tuple(range(1 + len(parameters)))
    ours = order(loss(KINDS[kind][0]), numbers)(x, *parameters)
    expected = hessian(loss(spelled_out(kind)), numbers)(x, *parameters)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nested_vmap_tangents_and_cotangents_match_plain_arithmetic(kind):
    function, plain = KINDS[kind][0], spelled_out(kind)
    x, w = double(2, 3, 4, 5).detach(), double(3, 5, seed=1).detach()

    def parameter_gradient(f):
        return vmap(vmap(grad(lambda w, x: f(x, w).pow(3).sum()), (0, 0)), (None, 0))(w, x)

    torch.testing.assert_close(parameter_gradient(function), parameter_gradient(plain))
    both = vmap(vmap(function, (0, 0)), (0, None))
    torch.testing.assert_close(both(x, w), vmap(vmap(plain, (0, 0)), (0, None))(x, w))
    torch.testing.assert_close(jvp(function, (x, w[0]), (x, w[1])), jvp(plain, (x, w[0]), (x, w[1])))
    torch.testing.assert_close(vjp(function, x, w[0])[1](x), vjp(plain, x, w[0])[1](x))


@pytest.mark.parametrize("kind", KINDS)
def test_batched_gradients_match_a_loop(kind):
    inputs = make_inputs(kind, (4, 3))
    first = torch.autograd.grad(KINDS[kind][0](*inputs).pow(3).sum(), inputs, create_graph=True)
    u = double(6, 4, 3, seed=7).detach()
    batched = torch.autograd.grad(first[0], inputs[:2], u, is_grads_batched=True, retain_graph=True)
    for i in range(len(u)):
        single = torch.autograd.grad(first[0], inputs[:2], u[i], retain_graph=True)
        for mine, theirs in zip(batched, single, strict=True):
            torch.testing.assert_close(mine[i], theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_second_derivatives_are_the_same(kind):
    inputs = make_inputs(kind, (3, 5))

    def second(f):
        first = torch.autograd.grad(f(*inputs).pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(d.pow(2).sum() for d in first), inputs)

    plain = second(KINDS[kind][0])
    again = second(lambda *args: checkpoint(KINDS[kind][0], *args, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_default_eps_and_autocast_are_those_of_pytorch():
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = (double(4, 64).detach() * 1e-4).to(dtype)
        torch.testing.assert_close(rms_norm(x, (64,)), F.rms_norm(x, (64,)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer_norm(x, (64,)).dtype == F.layer_norm(x, (64,)).dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_derivatives_inside_a_model_under_autocast_are_those_of_plain_pytorch(kind, dtype):
    x, *parameters = make_inputs(kind, (6, 16), torch.float32)
    leaves = [t.detach().clone().requires_grad_() for t in (x, *parameters, torch.randn(16, 16))]

    def second(function):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = leaves[0] @ leaves[-1] if dtype == torch.bfloat16 else leaves[0] * 2
            y = function(hidden, *leaves[1:-1])
            value = (y @ leaves[-1]).float().pow(3).sum()
        first = torch.autograd.grad(value, leaves, create_graph=True)
        return [y, *first, *torch.autograd.grad(sum(d.pow(2).sum() for d in first), leaves)]

    for ours, theirs in zip(second(KINDS[kind][0]), second(KINDS[kind][1]), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2 * theirs.abs().max().item())


def test_tensors_without_kernel_take_the_reference():
    x = torch.randn(3, 4).half()
    assert torch.equal(layer_norm(x, (4,)), F.layer_norm(x, (4,)))
    bias = torch.randn(4)
    torch.testing.assert_close(layer_norm(x.float(), (4,), None, bias), F.layer_norm(x.float(), (4,), None, bias))
    assert rms_norm(torch.empty(0, 4), (4,)).shape == (0, 4)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match="normalized_shape"):
        layer_norm(torch.randn(3, 4), (5,))
    with pytest.raises(ConfigurationError, match="weight of shape"):
        rms_norm(torch.randn(3, 4), (4,), torch.randn(3))
    with pytest.raises(ConfigurationError, match="bias of shape"):
        layer_norm(torch.randn(3, 4), (4,), torch.randn(4), torch.randn(1, 4))
