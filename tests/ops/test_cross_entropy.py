"""Cross-entropy: semantics of PyTorch's, two exact derivatives, every transform, clear errors."""

import pytest
import torch
from loss_checks import (
    assert_error_rule,
    check_derivatives,
    same_bits_on_any_threads,
    values_and_products,
)
from torch.utils.checkpoint import checkpoint

from hvp_engine.errors import ConfigurationError
from hvp_engine.ops.cross_entropy import cross_entropy, cross_entropy_ref

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

SIZES = [1, 2, 31, 129, 4097]
OPTIONS = [
    {},
    {"reduction": "sum"},
    {"reduction": "none", "label_smoothing": 0.1},
    {"weighted": True},
    {"weighted": True, "label_smoothing": 0.3, "reduction": "sum"},
    {"weighted": True, "label_smoothing": 1.0, "ignore_index": 1},
]


def make(rows, classes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (rows,), generator=generator)
    return logits.to(dtype), target


def bind(function, target, options, dtype=torch.float64):
    """The loss of logits alone; weights follow the dtype of the logits."""
    kwargs = {"ignore_index": -100, **options}
    weighted = kwargs.pop("weighted", False)

    def loss(logits):
        weight = torch.linspace(0.5, 2, logits.shape[1], dtype=logits.dtype) if weighted else None
        return function(logits, target, weight, **kwargs)

    return loss


@pytest.mark.parametrize("options", OPTIONS)
def test_derivatives_are_those_of_finite_differences(options):
    logits, target = make(3, 4)
    target[0], target[1] = 1, 2
    check_derivatives(bind(cross_entropy, target, options), (logits.requires_grad_(),))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("classes", SIZES)
def test_it_equals_the_reference_at_awkward_sizes(classes, options):
    logits, target = make(5, classes)
    target[2] = options.get("ignore_index", -100)
    target = target.clamp(max=classes - 1)
    direction = [torch.randn_like(logits)]
    ours = values_and_products(bind(cross_entropy, target, options), [logits], direction)
    theirs = values_and_products(bind(cross_entropy_ref, target, options), [logits], direction)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS[:5])
@pytest.mark.parametrize("classes", [2, 129, 4097])
def test_its_error_is_at_most_twice_the_plain_one(dtype, options, classes):
    logits, target = make(200, classes, dtype)
    target[3] = -100
    direction = [make(200, classes, dtype, seed=1)[0]]
    fused, plain = (bind(f, target, options) for f in (cross_entropy, cross_entropy_ref))
    assert_error_rule(fused, plain, [logits], direction)


@pytest.mark.parametrize("shape", [(7,), (2, 7, 3), (2, 7, 3, 2), (0, 7)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_classes_are_dimension_one_of_any_shape(shape, reduction):
    logits = torch.randn(shape, dtype=torch.float64)
    target = torch.randint(0, 7, shape[:0] if len(shape) == 1 else shape[:1] + shape[2:])
    direction = [torch.randn_like(logits)]
    ours, theirs = (
        values_and_products(lambda x, f=f: f(x, target, reduction=reduction), [logits], direction)
        for f in (cross_entropy, cross_entropy_ref)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_strided_logits_and_targets_are_read_correctly():
    base = torch.randn(10, 62, dtype=torch.float64)
    target = torch.randint(0, 31, (10, 2))[:, 0]
    for logits in (base[:, ::2], base[:, :31], base[:, 31:].t().contiguous().t()):
        torch.testing.assert_close(cross_entropy(logits, target), cross_entropy_ref(logits, target))


def test_the_mean_of_ignored_tokens_alone_is_nan_as_in_pytorch():
    logits, target = make(3, 4)
    target[:] = -100
    assert cross_entropy_ref(logits, target).isnan()
    assert cross_entropy(logits, target).isnan()
    assert cross_entropy(logits, target, reduction="sum") == 0


def test_infinite_and_nan_logits_give_what_pytorch_gives():
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor([[-inf, 0.0, 1.0], [-inf, -inf, -inf], [inf, 0.0, 0.0], [nan, 0.0, 0.0]])
    target = torch.tensor([2, 0, 0, 1])
    ours, theirs = (f(logits, target, reduction="none") for f in (cross_entropy, cross_entropy_ref))
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    wide = torch.full((1, 3000), -inf)
    wide[0, 2500:] = 0.0
    expected = torch.tensor(500.0).log()
    torch.testing.assert_close(cross_entropy(wide, torch.tensor([2600])), expected)


def test_large_logits_neither_overflow_nor_lose_the_maximum():
    logits = torch.tensor([[3e38, -3e38, 0.0], [1e4, 9999.0, -1e4]])
    target = torch.tensor([0, 1])
    torch.testing.assert_close(cross_entropy(logits, target), cross_entropy_ref(logits, target))


@pytest.mark.parametrize("target", [[0, 4], [0, -1], [0, 2**40]])
def test_a_target_that_is_no_class_is_a_clear_error(target):
    with pytest.raises(ConfigurationError, match="is not a class: the logits have 4 classes"):
        cross_entropy(torch.randn(2, 4), torch.tensor(target))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reduction": "max"}, "use 'none', 'sum' or 'mean'"),
        ({"label_smoothing": 1.5}, "between 0.0 and 1.0"),
        ({"weight": torch.ones(3)}, "one weight for each of the 4 classes"),
        ({"weight": torch.ones(4, requires_grad=True)}, "no derivative wrt class weights"),
        ({"target": torch.zeros(3, dtype=torch.long)}, "The targets have shape"),
        ({"target": torch.zeros(2, dtype=torch.bool)}, "must be integers"),
    ],
)
def test_bad_options_are_clear_errors(kwargs, message):
    target = kwargs.pop("target", torch.zeros(2, dtype=torch.long))
    with pytest.raises(ConfigurationError, match=message):
        cross_entropy(torch.randn(2, 4), target, **kwargs)


def test_class_probabilities_and_other_dtypes_run_the_reference():
    logits, _ = make(3, 4)
    probabilities = torch.rand(3, 4, dtype=torch.float64).softmax(1)
    assert torch.equal(cross_entropy(logits, probabilities), cross_entropy_ref(logits, probabilities))
    half, target = logits.half(), torch.tensor([0, 1, 2])
    assert torch.equal(cross_entropy(half, target), cross_entropy_ref(half, target))


def test_the_torch_backend_runs_the_reference(monkeypatch):
    logits, target = make(3, 4, torch.float32)
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "torch")
    assert torch.equal(cross_entropy(logits, target), cross_entropy_ref(logits, target))


def test_functional_transforms_agree_with_the_reference():
    func = torch.func
    logits, target = make(3, 5)
    batch, targets = torch.randn(4, 3, 5, dtype=torch.float64), torch.randint(0, 5, (4, 3))
    tangents = torch.randn(2, 3, 5, dtype=torch.float64)

    def results(f):
        def loss(x):
            return f(x, target)

        return [
            func.jvp(loss, (logits,), (tangents[0],))[1],
            func.jvp(func.grad(loss), (logits,), (tangents[0],))[1],
            func.vjp(loss, logits)[1](torch.ones((), dtype=torch.float64))[0],
            func.hessian(loss)(logits),
            func.jacrev(func.jacrev(loss))(logits),
            func.vmap(func.grad(f))(batch, targets),
            func.vmap(func.grad(f), in_dims=(1, None))(batch.movedim(0, 1), target),
            func.vmap(func.grad(f), in_dims=(None, 0))(logits, targets),
            func.vmap(func.hessian(f))(batch, targets),
            func.vmap(lambda v: func.jvp(func.grad(loss), (logits,), (v,))[1])(tangents),
            func.vmap(lambda w: func.grad(lambda x: f(x, target, w))(logits))(tangents[:, 0].exp()),
        ]

    for a, b in zip(results(cross_entropy), results(cross_entropy_ref), strict=True):
        torch.testing.assert_close(a, b)


def test_batched_gradients_of_both_orders_share_the_logits():
    logits, target = make(3, 5)
    logits.requires_grad_()
    upstream = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    vectors = torch.randn(4, 3, 5, dtype=torch.float64)

    def results(f):
        loss = f(logits, target, reduction="none")
        (many,) = torch.autograd.grad(loss, logits, upstream, is_grads_batched=True, create_graph=True)
        (one,) = torch.autograd.grad(loss, logits, upstream[0], create_graph=True)
        products = torch.autograd.grad(one, logits, vectors, is_grads_batched=True, retain_graph=True)
        return many, *torch.autograd.grad(many, (logits, upstream), vectors), *products

    for a, b in zip(results(cross_entropy), results(cross_entropy_ref), strict=True):
        torch.testing.assert_close(a, b)


def test_it_works_under_checkpointing_and_autocast():
    logits, target = make(3, 5, torch.float32)
    direction = [torch.randn(3, 5)]

    def stored(x):
        return cross_entropy(x.sin(), target)

    def recomputed(x):
        return checkpoint(stored, x, use_reentrant=False)

    ours, theirs = (values_and_products(f, [logits], direction) for f in (recomputed, stored))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        low = logits.bfloat16()
        ours, theirs = (f(low, target) for f in (cross_entropy, cross_entropy_ref))
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)


def test_the_bits_do_not_depend_on_the_number_of_threads():
    logits, target = make(257, 1031, torch.float32)
    direction = [torch.randn(257, 1031)]
    assert same_bits_on_any_threads(
        lambda: values_and_products(lambda x: cross_entropy(x, target), [logits], direction)
    )
    many, targets = make(70000, 3, torch.float32)
    assert same_bits_on_any_threads(lambda: [cross_entropy(many, targets)])


def test_probabilities_are_not_saved():
    logits, target = make(64, 4097, torch.float32)
    logits.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cross_entropy(logits, target)
    extra = {t.data_ptr(): t.numel() for t in saved if t.data_ptr() != logits.data_ptr()}
    assert sum(extra.values()) <= 4 * 64
