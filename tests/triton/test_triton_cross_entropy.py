"""Cross-entropy and the chunked head on their Triton kernels, interpreted, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from derivative_checks import DTYPES, SIZES, check_against_plain, check_reverse_derivatives, same_bits_twice, strided
from loss_checks import check_derivatives

from hvp_engine.ops.cross_entropy import cross_entropy, cross_entropy_ref
from hvp_engine.ops.head import by_classes, by_tokens
from hvp_engine.ops.head.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref
from hvp_engine.ops.head.room import HeadRoom, granted

pytestmark = [
    pytest.mark.usefixtures("on_triton"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]

OPTIONS = [
    {},
    {"reduction": "none", "label_smoothing": 0.1},
    {"weighted": True, "reduction": "sum"},
    {"weighted": True, "label_smoothing": 0.3, "ignore_index": 0},
]


# Every option meets every size in float32, and every dtype a short and a long row.
CASES = [(options, classes, torch.float32) for options in OPTIONS for classes in SIZES[:4]]
CASES += [(OPTIONS[i], classes, dtype) for dtype in DTYPES for i, classes in ((3, 31), (0, 4097))]


def bind(function, classes, target, options):
    """The loss as a function of logits (or hidden states and head) alone; weights follow their dtype."""
    kwargs = dict(options)
    weighted = kwargs.pop("weighted", False)
    name = "weight" if function in (cross_entropy, cross_entropy_ref) else "class_weight"

    def loss(*inputs):
        weight = torch.linspace(0.5, 2, classes, dtype=inputs[0].dtype) if weighted else None
        first = inputs[:1] if name == "weight" else inputs[:2]
        bias = {"bias": inputs[2]} if len(inputs) == 3 else {}
        return function(*first, target, **bias, **{name: weight}, **kwargs)

    return loss


def targets(rows, classes, options):
    """Random classes; the middle row is ignored, the first one is not (unless there is one class only)."""
    target = torch.randint(0, classes, (rows,))
    target[rows // 2] = options.get("ignore_index", -100)
    target[0] = classes - 1
    return target


@pytest.mark.parametrize(("options", "classes", "dtype"), CASES)
def test_it_equals_plain_pytorch_at_awkward_sizes(options, classes, dtype):
    rows = 5 if classes < 1000 else 2
    target = targets(rows, classes, options)
    fused, plain = (bind(f, classes, target, options) for f in (cross_entropy, cross_entropy_ref))
    if classes == 1 and "ignore_index" in options:
        assert fused(torch.randn(rows, 1)).isnan()
        return
    check_against_plain(fused, plain, [3 * strided(rows, classes, dtype=dtype)], scale=float(classes == 1))


def test_derivatives_are_those_of_finite_differences():
    options = {**OPTIONS[3], "reduction": "none"}
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    check_derivatives(bind(cross_entropy, 4, targets(3, 4, options), options), (logits,))


def test_a_nearly_certain_class_keeps_its_digits():
    logits = torch.zeros(2, 2500)
    logits[:, 7] = 40.0
    target = torch.tensor([7, 8])
    fused, plain = (bind(f, 2500, target, {"reduction": "sum"}) for f in (cross_entropy, cross_entropy_ref))
    check_against_plain(fused, plain, [logits])


def test_infinite_logits_give_what_pytorch_gives():
    inf = float("inf")
    logits = torch.tensor([[-inf, 0.0, 1.0], [-inf, -inf, -inf], [inf, 0.0, 1.0], [0.0, -inf, 2.0]])
    target = torch.tensor([1, 0, 1, 1])
    ours, theirs = (f(logits, target, reduction="none") for f in (cross_entropy, cross_entropy_ref))
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.fixture
def small_room():
    """Chunks and panels of the fewest rows."""
    with granted(HeadRoom(1, 1)):
        yield


@pytest.mark.usefixtures("small_room")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, OPTIONS[3]])
def test_the_chunked_head_equals_plain_pytorch(monkeypatch, options, dtype):
    monkeypatch.setattr(by_tokens, "MIN_CHUNK_ROWS", 8)
    target = targets(20, 131, options)
    fused, plain = (bind(f, 131, target, options) for f in (linear_cross_entropy, linear_cross_entropy_ref))
    inputs = [strided(20, 9), strided(131, 9), torch.randn(131)]
    if dtype == torch.bfloat16:  # logits of bfloat16 are rounded in another order: only the products' noise remains
        for a, b in zip(*(f(*(x.to(dtype) for x in inputs)).reshape(1) for f in (fused, plain)), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)
        return
    check_against_plain(fused, plain, [x.to(dtype) for x in inputs])


@pytest.mark.usefixtures("small_room")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_panelled_head_equals_plain_pytorch(monkeypatch, dtype):
    monkeypatch.setattr(by_classes, "MIN_ROWS", 8)
    monkeypatch.setattr(by_classes, "PANEL_CLASSES", 48)
    target = targets(20, 131, OPTIONS[3])
    head = [torch.randn(131, 9), torch.randn(131)]
    losses = [bind(f, 131, target, OPTIONS[3]) for f in (linear_cross_entropy, linear_cross_entropy_ref)]
    fused, plain = (lambda h, f=f: f(h, *(t.to(h.dtype) for t in head)) for f in losses)
    check_against_plain(fused, plain, [strided(20, 9).to(dtype)])


def test_the_chunked_heads_derivatives_are_those_of_finite_differences():
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 2), (4, 2), (4,))]
    target = torch.tensor([1, -100, 3])
    loss = bind(linear_cross_entropy, 4, target, {"weighted": True, "label_smoothing": 0.2})
    check_reverse_derivatives(loss, tuple(inputs))


def test_two_runs_give_the_same_bits():
    target = targets(6, 1031, OPTIONS[3])
    assert same_bits_twice(bind(cross_entropy, 1031, target, OPTIONS[3]), [torch.randn(6, 1031)])
