"""Heads of losses in bfloat16, in the engine's autocast and in the user's own: found, and their curvature used.

With precision="fp32" the engine keeps the user's autocast out, and the head must not suffer from the attempt.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hvp_engine.experiments.models.gpt import GPT, GPTConfig
from hvp_engine.operators.hessian import HessianOperator
from hvp_engine.scheduling import policy

V = 40
TOKENS = [torch.randint(0, V, (3, 6), generator=torch.Generator().manual_seed(n)) for n in (3, 2)]
BLOCKS = {"wq": ["layers.0.attn.wq.weight"], "fc": ["layers.0.c_fc.weight"]}

FORMS = {
    "view": lambda z, t: F.cross_entropy(z[:, :-1].contiguous().view(-1, V), t[:, 1:].reshape(-1)),
    "reshape": lambda z, t: F.cross_entropy(z[:, :-1].reshape(-1, V), t[:, 1:].reshape(-1)),
    "flatten": lambda z, t: F.cross_entropy(z[:, :-1].flatten(0, 1), t[:, 1:].flatten()),
    "float": lambda z, t: F.cross_entropy(z.float()[..., :-1, :].contiguous().view(-1, V), t[:, 1:].reshape(-1)),
    "smoothed": lambda z, t: F.cross_entropy(z[:, :-1].reshape(-1, V), t[:, 1:].reshape(-1), label_smoothing=0.1),
    "ignoring": lambda z, t: F.cross_entropy(z[:, :-1].reshape(-1, V), t[:, 1:].reshape(-1), ignore_index=3),
    "module": lambda z, t: nn.CrossEntropyLoss()(z[:, :-1].reshape(-1, V), t[:, 1:].reshape(-1)),
    "nll": lambda z, t: F.nll_loss(F.log_softmax(z[:, :-1], -1).reshape(-1, V), t[:, 1:].reshape(-1)),
    "nll of float": lambda z, t: F.nll_loss(z.float()[:, :-1].log_softmax(-1).reshape(-1, V), t[:, 1:].reshape(-1)),
}


def engine(form):
    """The engine's autocast, for precision="bf16"."""
    return lambda model, tokens: FORMS[form](model(tokens), tokens)


def around_model(form):
    """The user's own, as in mixed-precision training: master weights in float32, the loss outside."""

    def loss(model, tokens):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(tokens)
        return FORMS[form](logits, tokens)

    return loss


def around_all(form):
    def loss(model, tokens):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return FORMS[form](model(tokens), tokens)

    return loss


WAYS = {
    "the engine's": ("bf16", engine),
    "the user's, around the model": ("fp32", around_model),
    "the user's, around all": ("fp32", around_all),
    "both": ("bf16", around_model),
}


def tied_gpt():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=V, context=6, layers=1, heads=2, width=8)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3.0)
    return model


def products(operator):
    generator = torch.Generator().manual_seed(5)
    vectors = {name: torch.randn(2, n, generator=generator).to(operator.dtype) for name, n in operator.numel.items()}
    return {name: product.double() for name, product in operator.matmat(vectors).items()}


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture
def forming(monkeypatch):
    """Make forming pay at the sizes of a test: a bottomless number of products is promised."""
    monkeypatch.setattr(policy, "BALANCE", {"memory": 0.0, "disk": 0.0})
    return dict.fromkeys(BLOCKS, 10**9)


@pytest.mark.parametrize(
    ("form", "way"),
    [
        *((form, way) for form in FORMS for way in ("the engine's", "the user's, around the model")),
        *(("view", way) for way in ("the user's, around all", "both")),
    ],
)
def test_the_head_is_found_and_its_curvature_used(form, way, forming):
    precision, loss = WAYS[way]
    plain, quick = (HessianOperator(tied_gpt(), loss(form), BLOCKS, data=TOKENS, precision=precision) for _ in range(2))
    assert quick.head is not None
    assert quick.head.name == "wte.weight"
    quick.form_head_curvature(forming, progress=False)
    assert "in memory, relative error" in quick.head_curvature
    exact = products(HessianOperator(tied_gpt(), engine(form), BLOCKS, data=TOKENS, precision="fp64"))
    wanted, found = products(plain), products(quick)
    for name in BLOCKS:
        assert relative(found[name], wanted[name]) <= 2e-2, name
        assert relative(found[name], exact[name]) <= max(2e-2, 1.5 * relative(wanted[name], exact[name])), name


def hugging_face(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=V, n_positions=8, n_embd=8, n_layer=1, n_head=2)
        return transformers.GPT2LMHeadModel(config).eval(), "h.0.mlp.c_fc.weight"
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).eval(), "layers.0.mlp.up_proj.weight"


def models_own(model, tokens):
    return model(input_ids=tokens, labels=tokens).loss


def outside(model, tokens):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens).logits
    return FORMS["view"](logits, tokens)


@pytest.mark.parametrize(("precision", "loss"), [("bf16", models_own), ("fp32", outside), ("bf16", outside)])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_heads_of_hugging_face_models_are_found_in_bfloat16(kind, precision, loss, monkeypatch):
    monkeypatch.setattr(policy, "BALANCE", {"memory": 0.0, "disk": 0.0})
    model, name = hugging_face(kind)
    name = next(full for full, _ in model.named_parameters() if full.endswith(name))
    plain, quick = (HessianOperator(model, loss, {"fc": [name]}, data=TOKENS, precision=precision) for _ in range(2))
    assert quick.head is not None
    quick.form_head_curvature({"fc": 10**9}, progress=False)
    assert "in memory, relative error" in quick.head_curvature
    exact = products(HessianOperator(model, models_own, {"fc": [name]}, data=TOKENS, precision="fp64"))["fc"]
    assert relative(products(quick)["fc"], exact) <= max(2e-2, 1.5 * relative(products(plain)["fc"], exact))
