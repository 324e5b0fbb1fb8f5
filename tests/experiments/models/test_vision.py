"""The small image classifiers: sizes, initialisation, homogeneity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hvp_engine.experiments.models.patches import Mixer, PatchConfig, ViT
from hvp_engine.experiments.models.vision import MLP, VGG, ResNet

STAGES = ((16, 16), (32, 32), (64, 64))
PATCHES = PatchConfig(8, 2, 1, 10)
IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def small_vgg(**options: bool) -> VGG:
    return VGG(STAGES, 128, 10, channels=1, side=8, **options)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda: MLP((64, 64, 64, 64, 10)), 13_130),
        (small_vgg, 97_914),
        (lambda: ResNet((16, 32, 64), 10, channels=1), 174_970),
        (lambda: ViT(PATCHES), 202_186),
        (lambda: Mixer(PATCHES), 138_762),
    ],
)
def test_the_small_models_have_the_specified_sizes_and_give_logits(build, parameters: int) -> None:
    model = build()
    assert count(model) == parameters
    assert model(IMAGES).shape == (5, 10)


def test_an_mlp_without_biases_is_positively_homogeneous_in_each_layer() -> None:
    model = MLP((64, 32, 32, 10))
    before = model(IMAGES)
    with torch.no_grad():
        model.layers[0].weight.mul_(8.0)
        model.layers[2].weight.div_(8.0)
    assert torch.equal(model(IMAGES), before)


def test_weights_have_he_deviations_and_biases_are_zero() -> None:
    torch.manual_seed(0)
    model = small_vgg()
    conv, linear = model.features.conv_2_1, model.classifier[2]
    assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)
    assert float(linear.weight.detach().std()) == pytest.approx(math.sqrt(2 / 128), rel=0.05)
    assert not any(parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_batchnorm_adds_to_a_vgg_without_renaming_its_parameters() -> None:
    plain, normed = (dict(small_vgg(batch_norm=flag).named_parameters()) for flag in (False, True))
    assert plain.keys() < normed.keys()
    assert {name.split(".")[1].split("_")[0] for name in normed.keys() - plain.keys()} == {"norm"}


def test_a_post_ln_vit_differs_from_a_pre_ln_one_by_its_last_layernorm_only() -> None:
    pre, post = (dict(ViT(PATCHES, norm).named_parameters()) for norm in ("pre", "post"))
    assert pre.keys() - post.keys() == {"norm.weight", "norm.bias"}
    assert post.keys() < pre.keys()


def test_a_post_ln_vit_normalises_what_leaves_a_layer() -> None:
    layer = ViT(PATCHES, "post").layers[0]
    out = layer(torch.randn(2, 17, 64) * 5)
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 17), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(-1, unbiased=False), torch.ones(2, 17), atol=1e-3, rtol=0)


def test_a_vit_sees_where_its_patches_are_and_a_mixer_too() -> None:
    rolled = torch.roll(IMAGES, 2, dims=3)
    for model in (ViT(PATCHES), Mixer(PATCHES)):
        assert not torch.allclose(model(IMAGES), model(rolled), atol=1e-6)
