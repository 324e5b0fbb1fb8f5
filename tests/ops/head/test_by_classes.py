"""Linear head + cross-entropy differentiated wrt hidden states alone: panels are invisible, rounding is corrected."""

import pytest
import torch
from loss_checks import assert_error_rule, check_derivatives, same_bits_on_any_threads, values_and_products
from torch.autograd import grad

from hvp_engine.kernels.softmax import softmax_tangent, softmax_tangent_ref
from hvp_engine.ops.head import by_classes
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref
from hvp_engine.ops.head.room import ON_CPU, HeadRoom, granted

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

OPTIONS = [
    {},
    {"reduction": "none", "label_smoothing": 0.1, "ignore_index": 1},
    {"weighted": True, "label_smoothing": 0.3, "reduction": "sum"},
    {"weighted": True, "keep_logits": True},
]


@pytest.fixture(autouse=True)
def small_panels(monkeypatch):
    """Every test below crosses borders of panels in both directions."""
    monkeypatch.setattr(by_classes, "PANEL_CLASSES", 16)
    monkeypatch.setattr(by_classes, "MIN_ROWS", 3)
    with granted(HeadRoom(ON_CPU.chunk_bytes, 1)):
        yield


def make(tokens, d, classes, scale=1.0, dtype=torch.float64):
    """Hidden states, and a loss of them with a fixed head, plain or ours."""
    hidden = torch.randn(tokens, d, dtype=torch.float64).to(dtype)
    weight, bias = scale * torch.randn(classes, d) / d**0.5, torch.randn(classes)
    target = torch.randint(0, classes, (tokens,))

    def loss_of(function, options):
        kwargs = dict(options)
        weights = torch.linspace(2.0, 0.0, classes) if kwargs.pop("weighted", False) else None
        if function is linear_cross_entropy_ref:
            kwargs.pop("keep_logits", None)

        def loss(hidden):
            head = [t.to(hidden.dtype) for t in (weight, bias)]
            return function(
                hidden, head[0], target, head[1], None if weights is None else weights.to(hidden.dtype), **kwargs
            )

        return loss

    return hidden, target, loss_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 2, 31, 129, 4097])
def test_the_kernel_equals_its_reference(columns, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logits = (3 * torch.randn(6, columns + 5)).to(dtype)[:, 2 : columns + 2]
    largest = logits.to(wide).amax(1)
    norm = torch.stack([largest, torch.rand_like(largest)], 1)
    factor, center = torch.randn(2, 6, dtype=wide)
    factor[4], logits[4] = 0.0, float("inf")
    tangent, totals = torch.randn(6, columns).to(dtype), torch.randn(6, dtype=torch.float64)
    expected = softmax_tangent_ref(logits.to(wide), norm, factor, center, tangent.to(wide))
    expected[4] = 0.0
    sums = totals + expected.sum(1)
    softmax_tangent(logits, norm, factor, center, tangent, totals)
    torch.testing.assert_close(tangent, expected.to(dtype))
    torch.testing.assert_close(totals, sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_derivatives_are_those_of_finite_differences(options):
    hidden, _, loss_of = make(5, 3, 40)
    check_derivatives(loss_of(linear_cross_entropy, options), (hidden.requires_grad_(),))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("tokens", "d", "classes"), [(1, 1, 1), (7, 2, 31), (10, 31, 129), (4, 3, 4097)])
def test_it_equals_the_reference_at_awkward_sizes(tokens, d, classes, options):
    hidden, target, loss_of = make(tokens, d, classes)
    target[0] = min(options.get("ignore_index", 0), classes - 1)
    ours, theirs = (
        values_and_products(loss_of(f, options), [hidden], [torch.ones_like(hidden)])
        for f in (linear_cross_entropy, linear_cross_entropy_ref)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


# With a scale of 30 one class has nearly all the probability of most tokens: the mean weights' rounding is as large
# as what is left of the second derivative.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]])
def test_its_error_is_at_most_twice_the_plain_one(dtype, scale, options):
    hidden, _, loss_of = make(100, 33, 301, scale, dtype)
    fused, plain = (loss_of(f, options) for f in (linear_cross_entropy, linear_cross_entropy_ref))
    assert_error_rule(fused, plain, [hidden], [torch.randn(hidden.shape).to(dtype)])


def test_confident_tokens_keep_their_accuracy(monkeypatch):
    hidden, _, loss_of = make(50, 16, 64, scale=20.0, dtype=torch.float32)
    direction = [torch.randn_like(hidden)]
    exact = values_and_products(loss_of(linear_cross_entropy_ref, {}), [hidden.double()], [direction[0].double()])[-1]
    small = exact.norm(dim=1).argsort()[:25]  # tokens of small second derivatives, each against its own size

    def worst():
        ours = values_and_products(loss_of(linear_cross_entropy, {}), [hidden], direction)[-1]
        plain = values_and_products(loss_of(linear_cross_entropy_ref, {}), [hidden], direction)[-1]
        error, allowed = (((x - exact).norm(dim=1) / exact.norm(dim=1))[small] for x in (ours, plain))
        return float(error.median() / allowed.median())

    assert worst() < 2.0
    kernel = by_classes.softmax_tangent
    monkeypatch.setattr(by_classes, "softmax_tangent", lambda *a: kernel(*a[:-1], a[-1].clone()))
    assert worst() > 10.0  # without the correction


def test_an_ignored_token_may_hold_anything():
    hidden, target, loss_of = make(7, 4, 40)
    hidden[2], target[2] = float("nan"), -100
    (product,) = values_and_products(
        loss_of(linear_cross_entropy, {"reduction": "none"}), [hidden], [torch.ones_like(hidden)]
    )[2:]
    assert (product[2] == 0).all()
    assert product[[0, 1, 3, 4, 5, 6]].isfinite().all()


def test_many_directions_go_through_at_once_and_a_batched_loss_one_by_one():
    hidden, _, loss_of = make(7, 4, 40)
    for options in OPTIONS[:1] + OPTIONS[2:]:
        products = []
        for function in (linear_cross_entropy, linear_cross_entropy_ref):
            h = hidden.clone().requires_grad_()
            (gradient,) = grad(loss_of(function, options)(h), h, create_graph=True)
            torch.manual_seed(0)
            directions = torch.randn(3, *h.shape, dtype=h.dtype)
            products.append(grad(gradient, h, directions, is_grads_batched=True)[0])
        torch.testing.assert_close(*products)
    scales = torch.rand(3, 7, dtype=torch.float64)
    stacked = []
    for function in (linear_cross_entropy, linear_cross_entropy_ref):
        loss = loss_of(function, {"reduction": "none"})
        product = torch.func.vmap(
            lambda s, f=loss: torch.func.jvp(torch.func.grad(lambda h: (s * f(h)).sum()), (hidden,), (hidden,))[1]
        )
        stacked.append(product(scales))
    torch.testing.assert_close(*stacked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_does_not_change_the_bits(dtype):
    hidden, _, loss_of = make(40, 17, 301, dtype=dtype)
    loss = loss_of(linear_cross_entropy, {})
    assert same_bits_on_any_threads(lambda: values_and_products(loss, [hidden], [hidden]))
