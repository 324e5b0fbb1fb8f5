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
    "by keywords": lambda z: F.cross_entropy(input=torch.reshape(z, shape=(-1, 7)), target=TARGETS.reshape(-1)),
    "a module": lambda z: nn.CrossEntropyLoss(ignore_index=3)(z.view(-1, 7), TARGETS.view(-1)),
    "log-probabilities": lambda z: F.nll_loss(F.log_softmax(z, -1).reshape(-1, 7), TARGETS.reshape(-1)),
    "log-probabilities by modules": lambda z: nn.NLLLoss(reduction="sum")(
        nn.LogSoftmax(dim=2)(z)[:, :-1].flatten(0, 1), TARGETS[:, 1:].flatten()
    ),
    "log-probabilities by a method": lambda z: F.nll_loss(
        z.view(-1, 7).log_softmax(1, dtype=z.dtype), TARGETS.view(-1), torch.arange(1.0, 8.0).double(), ignore_index=2
    ),
    "log-probabilities normalised twice": lambda z: F.cross_entropy(torch.log_softmax(z[0], -1), TARGETS[0]),
}

COMPUTED = {
    "scaled": lambda z: F.cross_entropy((2 * z).reshape(-1, 7), TARGETS.reshape(-1)),
    "classes sliced": lambda z: F.cross_entropy(z[..., :5].reshape(-1, 5), TARGETS.reshape(-1) % 5),
    "classes in the second dimension": lambda z: F.cross_entropy(z.transpose(1, 2), TARGETS),
    "classes mixed with rows": lambda z: z.reshape(7, 10).square().sum(),
    "soft targets": lambda z: F.cross_entropy(z[0], torch.full((5, 7), 1 / 7, dtype=z.dtype)),
    "log-probabilities over positions": lambda z: F.nll_loss(F.log_softmax(z, 1).reshape(-1, 7), TARGETS.reshape(-1)),
    "chosen log-probabilities": lambda z: -F.log_softmax(z, -1).gather(2, TARGETS[..., None]).mean(),
    "nothing normalised": lambda z: F.nll_loss(z.reshape(-1, 7), TARGETS.reshape(-1)),
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


def test_a_cast_after_one_that_rounds_does_not_hide_it():
    model, x = Classifier().float(), X.float()
    losses = {}
    for fused, mode in ((False, TwiceDifferentiable()), (True, fuse_lm_head(model))):
        with mode:
            losses[fused] = F.cross_entropy(model(x)[0].to(torch.bfloat16).float(), TARGETS[0])
    assert "linear_cross_entropy" not in mode.replaced
    assert torch.equal(losses[True], losses[False])


UNDER_AUTOCAST = {
    "as they are": lambda z: F.cross_entropy(z.view(-1, 7), TARGETS.view(-1)),
    "reshaped": lambda z: F.cross_entropy(z.reshape(-1, 7), TARGETS.reshape(-1)),
    "flattened": lambda z: F.cross_entropy(z.flatten(0, 1), TARGETS.flatten()),
    "shifted": lambda z: F.cross_entropy(z[:, :-1].contiguous().view(-1, 7), TARGETS[:, 1:].reshape(-1)),
    "cast": lambda z: F.cross_entropy(z.float().view(-1, 7), TARGETS.view(-1)),
    "cast by to": lambda z: F.cross_entropy(z.view(-1, 7).to("cpu", dtype=torch.float32), TARGETS.view(-1)),
    "smoothed": lambda z: F.cross_entropy(z.view(-1, 7), TARGETS.view(-1), label_smoothing=0.1),
    "ignored": lambda z: F.cross_entropy(z.view(-1, 7), TARGETS.view(-1), ignore_index=2, reduction="sum"),
    "row by row": lambda z: F.cross_entropy(z.view(-1, 7), TARGETS.view(-1), reduction="none").sum(),
    "a module": lambda z: nn.CrossEntropyLoss()(z.view(-1, 7), TARGETS.view(-1)),
    "log-probabilities": lambda z: F.nll_loss(F.log_softmax(z, -1).view(-1, 7), TARGETS.view(-1)),
    "log-probabilities of a cast": lambda z: nn.NLLLoss()(nn.LogSoftmax(-1)(z.float()).view(-1, 7), TARGETS.view(-1)),
    "log-probabilities in float32": lambda z: F.nll_loss(
        F.log_softmax(z.view(-1, 7), dim=-1, dtype=torch.float32), TARGETS.view(-1)
    ),
}


def under_autocast(model, loss, where):
    """The loss where autocast is on in the model alone, or in the loss too."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(X.to(model.body.weight.dtype))
        if where == "everywhere":
            return loss(logits)
    return loss(logits)


def hessian_product(model, total):
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(total, parameters, create_graph=True)
    return torch.cat(
        [p.reshape(-1) for p in torch.autograd.grad(gradients, parameters, [p.detach().cos() for p in parameters])]
    )


@pytest.mark.parametrize("where", ["everywhere", "in the model"])
@pytest.mark.parametrize("case", UNDER_AUTOCAST)
def test_a_loss_of_bfloat16_logits_is_fused(case, where):
    model, loss = Classifier().float(), UNDER_AUTOCAST[case]
    with TwiceDifferentiable():
        plain = under_autocast(model, loss, where)
    with fuse_lm_head(model) as mode:
        fused = under_autocast(model, loss, where)
    assert mode.replaced["linear_cross_entropy"] == 1
    assert fused.dtype == plain.dtype
    torch.testing.assert_close(fused, plain, rtol=1e-2, atol=0)
    exact = Classifier()
    wanted = hessian_product(exact, loss(exact(X)))
    error = (hessian_product(model, fused).double() - wanted).norm() / wanted.norm()
    assert error <= 2e-2


def test_logits_of_bfloat16_products_are_the_same_wherever_they_are_needed():
    model, x = Classifier().float(), X.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(x)
        with fuse_lm_head(model):
            lazy = model(x)
    assert (lazy.dtype, (lazy + 0).dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(lazy + 0, plain)


def test_products_outside_of_autocast_stay_float32_in_a_loss_inside():
    model, x = Classifier().float(), X.float()
    plain = F.cross_entropy(model(x)[0], TARGETS[0])
    with fuse_lm_head(model) as mode:
        logits = model(x)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fused = F.cross_entropy(logits, TARGETS[0])
    assert mode.replaced["linear_cross_entropy"] == 1
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=0)


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
