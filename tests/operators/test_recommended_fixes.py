"""What error messages recommend, carried out: the message, then the product."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from custom_functions import Once, Sound
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hvp_engine as he
from hvp_engine import ops
from hvp_engine.errors import HvpEngineError

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Around(nn.Module):
    """A linear layer before and after a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.function, self.last = nn.Linear(6, 16), function, nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.function(torch.tanh(self.first(x))).reshape(len(x), 16))
        return y


def product(function: Callable[[Tensor], Tensor]) -> Tensor:
    model = Around(function)
    vectors = torch.ones(1, sum(p.numel() for p in model.parameters()))
    return he.hvp(model, lambda m, x: m(x).square().mean(), {"full": vectors}, data=[X])["full"]


def check(message: str, failing: Callable[[Tensor], Tensor], mended: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(HvpEngineError, match=message):
        product(failing)
    assert torch.isfinite(product(mended)).all()


def attend(backend: SDPBackend) -> Callable[[Tensor], Tensor]:
    def attended(x: Tensor) -> Tensor:
        heads = x.reshape(-1, 1, 4, 4)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(heads, heads, heads)

    return attended


def test_the_math_path_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVP_ENGINE_BACKEND", "torch")
    check("math path", attend(SDPBackend.FLASH_ATTENTION), attend(SDPBackend.MATH))


def test_interpolation_in_place_of_grid_sample() -> None:
    def sampled(x: Tensor) -> Tensor:
        image = x.reshape(-1, 1, 4, 4)
        grid = torch.rand(4, 4, 4, 2, generator=torch.Generator().manual_seed(1)).expand(len(x), 4, 4, 2)
        return F.grid_sample(image, grid, align_corners=True)

    def interpolated(x: Tensor) -> Tensor:
        rows = x.reshape(-1, 4, 4)
        share = torch.sigmoid(rows.mean((1, 2), keepdim=True))
        return (1 - share) * rows + share * rows.roll(1, -1)

    try:  # PyTorch 2.13 has the second derivative, 2.9 has not
        product(sampled)
    except HvpEngineError as error:
        assert "interpolation written with elementary operations" in str(error)
    assert torch.isfinite(product(interpolated)).all()


def test_a_backward_that_is_itself_differentiable() -> None:
    check("once_differentiable", Once.apply, Sound.apply)


def test_recurrent_layers_without_cudnn() -> None:
    torch.manual_seed(1)
    cell = nn.GRU(4, 4, batch_first=True)

    def recurrent(x: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            states: Tensor = cell(x.reshape(-1, 4, 4))[0]
        return states

    assert torch.isfinite(product(recurrent)).all()


def test_a_model_that_cannot_be_copied_is_converted_by_its_owner() -> None:
    def locked() -> Around:
        model = Around(torch.tanh)
        model.lock = threading.Lock()
        return model

    def products(model: nn.Module, x: Tensor) -> Tensor:
        vectors = {"full": torch.ones(1, sum(p.numel() for p in model.parameters()))}
        return he.hvp(model, lambda m, x: m(x).square().mean(), vectors, data=[x], precision="fp64")["full"]

    with pytest.raises(HvpEngineError, match=r"convert it yourself with model\.to\(torch\.float64\), and the data"):
        products(locked(), X)
    assert torch.isfinite(products(locked().to(torch.float64), X.to(torch.float64))).all()


def test_tensors_of_the_loss_in_the_dtype_of_the_model() -> None:
    model, own = nn.Linear(6, 2), torch.ones(2)
    vectors = {"full": torch.ones(1, 14)}
    with pytest.raises(HvpEngineError, match="must have that dtype"):
        he.hvp(model, lambda m, x: (m(x) @ own).square().mean(), vectors, data=[X], precision="fp64")
    he.hvp(model, lambda m, x: (m(x) @ own.to(m.weight.dtype)).square().mean(), vectors, data=[X], precision="fp64")


def test_the_public_operations_with_what_their_errors_ask_for() -> None:
    logits, target, q = torch.randn(3, 5), torch.tensor([0, 1, 2]), torch.randn(1, 3, 4)
    weight = torch.rand(5).requires_grad_()
    with pytest.raises(HvpEngineError, match=r"pass weight\.detach\(\)"):
        ops.cross_entropy(logits, target, weight)
    ops.cross_entropy(logits, target, weight.detach())
    with pytest.raises(HvpEngineError, match=r"target\.long\(\)"):
        ops.cross_entropy(logits, target.bool())
    ops.cross_entropy(logits, target.bool().long())
    mask = torch.zeros(3, 3)
    with pytest.raises(HvpEngineError, match="fold the causal mask into attn_mask"):
        ops.attention(q, q, q, mask, is_causal=True)
    folded = ops.attention(q, q, q, mask.masked_fill(~torch.ones(3, 3, dtype=torch.bool).tril(), -torch.inf))
    torch.testing.assert_close(folded, ops.attention(q, q, q, is_causal=True))
    with pytest.raises(HvpEngineError, match="Convert the mask"):
        ops.attention(q, q, q, mask.double())
    ops.attention(q, q, q, mask.double().float())
    with pytest.raises(HvpEngineError, match="cast them to one dtype"):
        ops.linear_cross_entropy(torch.randn(3, 2), torch.randn(5, 2).double(), target)
    ops.linear_cross_entropy(torch.randn(3, 2), torch.randn(5, 2).double().float(), target)
