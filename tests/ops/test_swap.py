import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from hvp_engine import ops
from hvp_engine.kernels import loader
from hvp_engine.ops import twice_differentiable


def seeded(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def derivatives(model, x):
    """Loss, gradients, and a Hessian-vector product."""
    parameters = list(model.parameters())
    loss = model(x).pow(2).mean()
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    product = torch.autograd.grad(grads, parameters, [p.detach().cos() for p in parameters])
    return [loss, *grads, *product]


def assert_swap_changes_nothing(model, x, expected):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        plain = derivatives(model, x)
        with twice_differentiable() as mode:
            swapped = derivatives(model, x)
    for mine, theirs in zip(swapped, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert expected.items() <= mode.replaced.items()


def test_a_transformer_encoder_runs_unchanged_and_reports_what_was_replaced():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    model = seeded(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    x = torch.randn(2, 5, 8, dtype=torch.double)
    assert_swap_changes_nothing(model, x, {"layer_norm": 4, "gelu": 2})
    assert_swap_changes_nothing(model.eval(), x, {"layer_norm": 4, "gelu": 2})


def test_a_network_of_modules_runs_unchanged():
    model = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.RMSNorm(6), nn.Linear(6, 5), nn.GELU("tanh"), nn.LayerNorm(5))
    x = torch.randn(3, 4, dtype=torch.double)
    assert_swap_changes_nothing(seeded(model), x, {"silu": 1, "rms_norm": 1, "gelu": 1, "layer_norm": 1})


def test_calls_by_function_name_are_replaced_once():
    x, w = torch.randn(3, 4), torch.randn(4)
    with twice_differentiable() as mode:
        results = [
            F.layer_norm(x, (4,), w),
            torch.layer_norm(x, (4,), w),
            F.rms_norm(x, (4,), w),
            torch.rms_norm(x, (4,), w),
            F.gelu(x),
            F.silu(x),
        ]
    assert mode.replaced == {"layer_norm": 2, "rms_norm": 2, "gelu": 1, "silu": 1}
    plain = [F.layer_norm(x, (4,), w)] * 2 + [F.rms_norm(x, (4,), w)] * 2 + [F.gelu(x), F.silu(x)]
    torch.testing.assert_close(results, plain)


def test_the_inside_of_multi_head_attention_is_seen():
    model = seeded(nn.MultiheadAttention(8, 2, batch_first=True))
    x = torch.randn(2, 3, 8, dtype=torch.double)
    plain = model(x, x, x, need_weights=False)[0]
    with twice_differentiable() as mode:
        swapped = model(x, x, x, need_weights=False)[0]
    assert mode.replaced == {"attention": 1}
    torch.testing.assert_close(swapped, plain)


def test_unsupported_calls_fall_through_uncounted():
    x = torch.randn(3, 4)
    with twice_differentiable() as mode:
        F.layer_norm(x.half(), (4,))
        F.gelu(x.half())
        y = x.clone()
        assert F.silu(y, inplace=True) is y
    assert mode.replaced == {}
    assert torch.equal(y, F.silu(x))


def test_nothing_is_replaced_outside_the_context():
    with twice_differentiable() as mode:
        pass
    F.gelu(torch.randn(3))
    assert mode.replaced == {}


def test_checkpointed_layers_recompute_with_the_same_operations():
    block = seeded(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()))
    x = torch.randn(3, 4, dtype=torch.double)
    plain = derivatives(block, x)

    class Checkpointed(nn.Module):
        def parameters(self, recurse=True):
            return block.parameters(recurse)

        def forward(self, x):
            return checkpoint(block, x, use_reentrant=False)

    with twice_differentiable():
        again = derivatives(Checkpointed(), x)
    torch.testing.assert_close(again, plain)


def test_without_native_kernels_the_reference_serves(monkeypatch):
    x = torch.randn(3, 4, requires_grad=True)
    monkeypatch.setattr(loader, "missing_reason", "not built")
    monkeypatch.setattr(loader, "_warned", True)
    with twice_differentiable() as mode:
        outputs = [F.gelu(x), F.silu(x), F.layer_norm(x, (4,)), F.rms_norm(x, (4,))]
    assert mode.replaced == {}
    for mine, plain in zip(
        (ops.gelu(x), ops.silu(x), ops.layer_norm(x, (4,)), ops.rms_norm(x, (4,))), outputs, strict=True
    ):
        assert torch.equal(mine, plain)
        assert type(mine.grad_fn) is type(plain.grad_fn)
    assert torch.equal(ops.swiglu(x, x), F.silu(x) * x)


def test_modes_are_not_asked_about_the_inside_of_an_operation():
    class Seen(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.functions = set()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.functions.add(func)
            return func(*args, **(kwargs or {}))

    x = torch.randn(3, 4, requires_grad=True)
    with Seen() as seen:
        y = ops.gelu(x)
        torch.empty_like(y)
        (g,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
        torch.autograd.grad(g, x, torch.ones_like(y))
    assert torch.empty_like in seen.functions
    assert Tensor.data_ptr not in seen.functions


def masked_weights(scores, seen):
    """Attention weights as models write them: masked by the smallest number, softmax in float32."""
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return F.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)


def test_a_row_that_sees_nothing_is_the_same_in_float64_as_in_float32():
    seen = torch.tensor([[False, False, False], [False, True, True]])
    narrow = torch.randn(2, 3)
    results = []
    for given in (narrow, narrow.double()):
        scores = given.requires_grad_()
        with twice_differentiable():
            weights = masked_weights(scores, seen)
        (gradient,) = torch.autograd.grad((weights * weights.exp()).sum(), scores, create_graph=True)
        results.append([weights, gradient, *torch.autograd.grad(gradient.square().sum(), scores)])
    torch.testing.assert_close(results[0], [t.float() for t in results[1]])
    assert torch.isnan(masked_weights(narrow.double(), seen)).any()  # PyTorch's own
    assert torch.equal(results[1][0][0], torch.full((3,), 1 / 3, dtype=torch.float32).double())


def test_scores_within_range_keep_their_bits_in_a_narrower_softmax():
    scores = torch.randn(4, 7, dtype=torch.float64) * 100
    scores[0, 0] = -torch.inf
    with twice_differentiable():
        ours = F.softmax(scores, -1, dtype=torch.float32)
    assert torch.equal(ours, ops.softmax(scores, -1, torch.float32))


@pytest.mark.parametrize("inplace", [False, True])
def test_hardsigmoid_has_a_second_derivative(inplace):
    class Gate(nn.Module):
        def __init__(self, gate):
            super().__init__()
            self.first, self.last, self.gate = nn.Linear(4, 5), nn.Linear(5, 3), gate

        def forward(self, x):
            x = self.first(x) * 3
            return self.last(x * self.gate(x.clone()))

    x = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(6, 4)
    expected = derivatives(seeded(Gate(lambda y: (y / 6 + 0.5).clamp(0, 1))), x)
    with twice_differentiable():
        found = derivatives(seeded(Gate(nn.Hardsigmoid(inplace))), x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_hardsigmoid_in_place_writes_to_its_argument():
    with twice_differentiable():
        x = torch.tensor([-4.0, 0.0, 1.5])
        assert F.hardsigmoid(x, inplace=True) is x
    assert torch.equal(x, torch.tensor([0.0, 0.5, 0.75]))


def test_rows_that_a_mask_hides_whole_can_be_left_out_of_tests_by_differences():
    scores = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    values = torch.randn(3, dtype=torch.float64)
    mask = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64) * torch.finfo(torch.float64).min

    def gradient(mode):
        with mode:
            for weights in (
                F.softmax(scores + mask, dim=-1),
                torch.softmax(scores + mask, -1),
                (scores + mask).softmax(-1),
            ):
                yield torch.autograd.grad((weights @ values).square().sum(), scores)[0]

    constant = twice_differentiable()
    constant.hidden_rows_are_constant = True
    for kept, left_out in zip(gradient(twice_differentiable()), gradient(constant), strict=True):
        assert kept[0].abs().max() > 0 and not left_out[0].any()
        assert torch.equal(kept[1], left_out[1])
