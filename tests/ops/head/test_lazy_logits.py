import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.ops import fuse_lm_head
from hvp_engine.ops.head.lazy_logits import FusedHead, HeadLogits
from hvp_engine.ops.swap import TwiceDifferentiable


class Classifier(nn.Module):
    """Hidden states, then a head with more classes than inputs."""

    def __init__(self, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 4).double()
        self.lm_head = nn.Linear(4, 7, bias=bias).double()

    def forward(self, x):
        return self.lm_head(self.body(x).tanh())


X = torch.linspace(-1, 1, 2 * 5 * 3, dtype=torch.double).view(2, 5, 3)
TARGETS = torch.arange(10).view(2, 5) % 7

LAZY = {
    "reshape": lambda z: F.cross_entropy(z.reshape(-1, 7), TARGETS.reshape(-1)),
    "view with an inferred class dimension": lambda z: F.cross_entropy(z.view(10, -1), TARGETS.reshape(-1)),
    "flatten": lambda z: F.cross_entropy(z.flatten(0, 1), TARGETS.flatten()),
    "shifted": lambda z: F.cross_entropy(z[:, :-1].reshape(-1, 7), TARGETS[:, 1:].reshape(-1), reduction="sum"),
    "shifted with an ellipsis": lambda z: F.cross_entropy(
        z[..., :-1, :].contiguous().view(-1, z.size(-1)), TARGETS[:, 1:].reshape(-1)
    ),
    "masked rows": lambda z: F.cross_entropy(z[TARGETS > 2], TARGETS[TARGETS > 2]),
    "one sequence": lambda z: F.cross_entropy(z[1], TARGETS[1], label_smoothing=0.1),
    "casts that change nothing": lambda z: F.cross_entropy(z.to(z.dtype)[0].to(z.device), TARGETS[0], ignore_index=2),
}

COMPUTED = {
    "scaled": lambda z: F.cross_entropy((2 * z).reshape(-1, 7), TARGETS.reshape(-1)),
    "classes sliced": lambda z: F.cross_entropy(z[..., :5].reshape(-1, 5), TARGETS.reshape(-1) % 5),
    "classes in the second dimension": lambda z: F.cross_entropy(z.transpose(1, 2), TARGETS),
    "classes mixed with rows": lambda z: z.reshape(7, 10).square().sum(),
    "soft targets": lambda z: F.cross_entropy(z[0], torch.full((5, 7), 1 / 7, dtype=z.dtype)),
    "another loss": lambda z: F.nll_loss(F.log_softmax(z, -1).reshape(-1, 7), TARGETS.reshape(-1)),
    "concatenated": lambda z: F.cross_entropy(torch.cat([z[0], z[1]]), TARGETS.reshape(-1)),
}


def second_derivatives(model, loss):
    parameters = list(model.parameters())
    value = loss(model(X))
    grads = torch.autograd.grad(value, parameters, create_graph=True)
    products = torch.autograd.grad(grads, parameters, [p.detach().cos() for p in parameters])
    return [value, *grads, *products]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", [*LAZY, *COMPUTED])
def test_losses_and_their_derivatives_do_not_change(case, bias):
    model, loss = Classifier(bias), {**LAZY, **COMPUTED}[case]
    plain = second_derivatives(model, loss)
    with fuse_lm_head(model) as mode:
        fused = second_derivatives(model, loss)
    for mine, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert mode.replaced.get("linear_cross_entropy", 0) == (case in LAZY)


def test_metadata_needs_no_logits_and_values_do():
    model = Classifier()
    with fuse_lm_head(model):
        logits = model(X)
    assert isinstance(logits, HeadLogits)
    assert (logits.shape, logits.dtype, logits.ndim, len(logits)) == ((2, 5, 7), torch.double, 3, 2)
    assert logits.requires_grad
    assert logits._computed is None
    torch.testing.assert_close(logits.argmax(-1), model(X).argmax(-1))
    assert logits._computed is not None
    assert "HeadLogits" not in repr(logits)


def test_a_cast_that_rounds_the_logits_is_not_fused_away():
    model = Classifier().float()
    x = X.float()
    with fuse_lm_head(model) as mode:
        fused = F.cross_entropy(model(x)[0].bfloat16(), TARGETS[0])
    assert "linear_cross_entropy" not in mode.replaced
    torch.testing.assert_close(fused, F.cross_entropy(model(x)[0].bfloat16(), TARGETS[0]))


def test_autocast_gives_what_the_plain_loss_gives_to_bfloat16_rounding():
    model = Classifier().float()
    losses = []
    for mode in (TwiceDifferentiable(), fuse_lm_head(model)):
        with mode, torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(F.cross_entropy(model(X.float()).float().view(-1, 7), TARGETS.view(-1)))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-2)
    assert losses[1].dtype == torch.float32


def test_the_own_gpt_with_its_tied_head_is_fused():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=31, context=6, layers=1, heads=2, width=8)).double()
    tokens = torch.randint(0, 31, (2, 6))

    def loss():
        return F.cross_entropy(model(tokens)[:, :-1].reshape(-1, 31), tokens[:, 1:].reshape(-1))

    plain = torch.autograd.grad(loss(), list(model.parameters()))
    with fuse_lm_head(model) as mode:
        fused = torch.autograd.grad(loss(), list(model.parameters()))
    assert mode.replaced["linear_cross_entropy"] == 1
    for mine, theirs in zip(fused, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_code_that_looks_past_torch_functions_is_refused():
    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.ops.aten.mul.Tensor(x, 2)

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    model = Classifier()
    logits = HeadLogits(model.body(X), model.lm_head.weight, None, FusedHead(model.lm_head.weight))
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(ConfigurationError, match="uncomputed logits"):
        Custom.apply(logits)


def test_a_model_without_a_linear_head_is_refused():
    with pytest.raises(ConfigurationError, match="no linear head"):
        fuse_lm_head(nn.Sequential(nn.Linear(2, 3)))
