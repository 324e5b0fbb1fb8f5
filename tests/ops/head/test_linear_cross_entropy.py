"""Linear head + cross-entropy: chunks are invisible, derivatives exact, and nothing unasked is computed."""

import sys

import pytest
import torch
from loss_checks import (
    assert_error_rule,
    check_derivatives,
    same_bits_on_any_threads,
    values_and_products,
)
from torch.autograd import grad
from torch.utils.checkpoint import checkpoint

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops.head import by_tokens
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref
from hvp_engine.ops.head.room import ON_CPU, HeadRoom, granted

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

OPTIONS = [
    {},
    {"reduction": "none", "label_smoothing": 0.1, "ignore_index": 1},
    {"weighted": True, "label_smoothing": 0.3, "reduction": "sum"},
    {"keep_logits": True},
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Every test below crosses chunk borders, the last chunk being shorter."""
    monkeypatch.setattr(by_tokens, "MIN_CHUNK_ROWS", 3)
    with granted(HeadRoom(0, ON_CPU.panel_bytes)):
        yield


def make(tokens, d, classes, dtype=torch.float64):
    hidden = torch.randn(tokens, d, dtype=torch.float64)
    weight = torch.randn(classes, d, dtype=torch.float64) / d**0.5
    bias = torch.randn(classes, dtype=torch.float64)
    return [t.to(dtype) for t in (hidden, weight, bias)], torch.randint(0, classes, (tokens,))


def bind(function, target, options):
    kwargs = dict(options)
    weighted = kwargs.pop("weighted", False)
    if function is linear_cross_entropy_ref:
        kwargs.pop("keep_logits", None)

    def loss(hidden, weight, bias=None):
        class_weight = torch.linspace(0.5, 2, weight.shape[0], dtype=hidden.dtype) if weighted else None
        return function(hidden, weight, target, bias, class_weight, **kwargs)

    return loss


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_derivatives_are_those_of_finite_differences(options, with_bias):
    inputs, target = make(4, 3, 5)
    inputs = [t.requires_grad_() for t in inputs[: 2 + with_bias]]
    check_derivatives(bind(linear_cross_entropy, target, options), inputs)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("tokens", "d", "classes"), [(1, 1, 1), (7, 2, 31), (10, 31, 129), (4, 3, 4097)])
def test_it_equals_the_reference_at_awkward_sizes(tokens, d, classes, options):
    inputs, target = make(tokens, d, classes)
    target[0] = min(options.get("ignore_index", 0), classes - 1)
    directions = [torch.randn_like(t) for t in inputs]
    ours, theirs = (
        values_and_products(bind(f, target, options), inputs, directions)
        for f in (linear_cross_entropy, linear_cross_entropy_ref)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS[::3])
def test_its_error_is_at_most_twice_the_plain_one(dtype, options):
    inputs, target = make(100, 33, 301, dtype)
    directions = [torch.randn(t.shape).to(dtype) for t in inputs]
    fused, plain = (bind(f, target, options) for f in (linear_cross_entropy, linear_cross_entropy_ref))
    assert_error_rule(fused, plain, inputs, directions)


def test_leading_dimensions_and_strides_are_those_of_the_hidden_states():
    hidden = torch.randn(2, 6, 5, dtype=torch.float64).transpose(0, 1)[:, :, ::2]
    weight = torch.randn(3, 7, dtype=torch.float64).t()
    target = torch.randint(0, 7, (6, 2))
    for reduction in ("none", "mean"):
        ours, theirs = (
            values_and_products(
                lambda h, w, f=f, r=reduction: f(h, w, target, reduction=r),
                [hidden, weight],
                [hidden, weight],
            )
            for f in (linear_cross_entropy, linear_cross_entropy_ref)
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_a_pass_computes_only_what_the_caller_asked_for(monkeypatch):
    (hidden, weight, bias), target = make(7, 3, 5)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    asked = []
    for name in ("head_backward", "head_hvp"):
        original = getattr(by_tokens, name)

        def recorded(*args, _original=original):
            asked.append(args[-1])
            return _original(*args)

        monkeypatch.setattr(sys.modules[linear_cross_entropy.__module__], name, recorded)
    scaled = hidden * 2.0
    loss = linear_cross_entropy(scaled, weight * 1.0, target, bias)
    (gradient,) = grad(loss, scaled, create_graph=True)
    panels = []
    operation = sys.modules[linear_cross_entropy.__module__]
    panelled = operation.head_hidden_hvp
    monkeypatch.setattr(operation, "head_hidden_hvp", lambda *a: panels.append(1) or panelled(*a))
    grad(gradient.sum(), scaled, retain_graph=True)
    assert len(panels) == 1
    grad(gradient.sum(), leaves)
    assert len(panels) == 1
    flags = [(w.hidden, w.weight, w.bias, w.slope) for w in asked]
    assert flags == [(True, False, False, False), (True, True, True, False)]


def test_functional_transforms_agree_with_the_reference():
    func = torch.func
    (hidden, weight, bias), target = make(4, 3, 5)
    many, targets = torch.randn(2, 4, 3, dtype=torch.float64), torch.randint(0, 5, (2, 4))
    weights = torch.randn(2, 5, 3, dtype=torch.float64)

    def results(f):
        def loss(h, w, b):
            return f(h, w, target, b)

        def product(v):
            return func.jvp(func.grad(loss, argnums=(0, 1)), (hidden, weight, bias), (v, weight, bias))[1]

        def per_sample(h, w, t):
            return func.grad(lambda h, w: f(h, w, t, bias), argnums=(0, 1))(h, w)

        return [
            func.jvp(loss, (hidden, weight, bias), (many[0], weights[0], bias))[1],
            *product(many[0]),
            *func.vmap(product)(many),
            *func.hessian(loss, argnums=(0, 1))(hidden, weight, bias)[0],
            func.jacrev(func.jacrev(loss))(hidden, weight, bias),
            *func.vmap(per_sample, in_dims=(0, None, 0))(many, weight, targets),
            *func.vmap(per_sample, in_dims=(None, 0, None))(hidden, weights, target),
        ]

    for a, b in zip(results(linear_cross_entropy), results(linear_cross_entropy_ref), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("keep_logits", [False, True])
def test_batched_second_backwards_share_the_logits(keep_logits):
    inputs, target = make(7, 3, 5)
    inputs = [t.requires_grad_() for t in inputs]
    vectors = torch.randn(4, 7, 3, dtype=torch.float64)

    def results(f):
        (one,) = grad(bind(f, target, {"keep_logits": keep_logits})(*inputs), inputs[0], create_graph=True)
        return grad(one, inputs, vectors, is_grads_batched=True)

    for a, b in zip(results(linear_cross_entropy), results(linear_cross_entropy_ref), strict=True):
        torch.testing.assert_close(a, b)


def test_it_works_under_checkpointing_and_autocast():
    inputs, target = make(7, 3, 5, torch.float32)
    directions = [torch.randn_like(t) for t in inputs]
    stored = bind(linear_cross_entropy, target, {})
    ours, theirs = (
        values_and_products(f, inputs, directions)
        for f in (lambda *a: checkpoint(stored, *a, use_reentrant=False), stored)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        low, plain = stored(*inputs), bind(linear_cross_entropy_ref, target, {})(*inputs)
    assert low.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(low, plain, rtol=1e-2, atol=1e-2)
    assert low != stored(*inputs)


def test_the_bits_do_not_depend_on_the_number_of_threads():
    inputs, target = make(50, 64, 517, torch.float32)
    directions = [torch.randn_like(t) for t in inputs]
    assert same_bits_on_any_threads(
        lambda: values_and_products(bind(linear_cross_entropy, target, {}), inputs, directions)
    )


def test_nothing_of_tokens_times_classes_is_saved_unless_asked_for():
    inputs, target = make(64, 3, 1001, torch.float32)
    inputs = [t.requires_grad_() for t in inputs]
    for keep, limit in ((False, 64 * 100), (True, 64 * 1001 + 64 * 100)):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, lambda t: t):
            loss = bind(linear_cross_entropy, target, {"keep_logits": keep})(*inputs)
            grad(loss, inputs, create_graph=True)
        sizes = {t.data_ptr(): t.numel() for t in saved}
        assert sum(sizes.values()) <= limit


def test_bad_input_is_a_clear_error():
    (hidden, weight, bias), target = make(4, 3, 5)
    cases = [
        ((hidden[:, :2], weight, target), r"must be \(..., d\) and \(classes, d\)"),
        ((hidden, weight, target, bias[:2]), "The bias has shape"),
        ((hidden, weight.float(), target), "cast them to one dtype"),
        ((hidden, weight, target[:2]), "The targets have shape"),
        ((hidden, weight, target + 5), "is not a class"),
    ]
    for args, message in cases:
        with pytest.raises(ConfigurationError, match=message):
            linear_cross_entropy(*args)


def test_the_torch_backend_runs_the_reference(monkeypatch):
    inputs, target = make(4, 3, 5, torch.float32)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "torch")
    ours, theirs = (bind(f, target, {})(*inputs) for f in (linear_cross_entropy, linear_cross_entropy_ref))
    assert torch.equal(ours, theirs)
