"""The zoo: parameters and blocks of every model at every size; nothing is allocated or read for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from zoo_entries import setting

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.zoo import zoo

SMALL = {  # parameters, blocks, family
    "mlp": (13_130, 4, "mlp"),
    "vgg": (97_914, 9, "cnn"),
    "resnet": (174_970, 16, "cnn"),
    "vit": (202_186, 26, "transformer"),
    "mixer": (138_762, 18, "mlp"),
}
PAPER = {
    "mlp": (59_210, 4, "mlp"),
    "vgg": (138_357_544, 16, "cnn"),
    "resnet": (11_689_512, 21, "cnn"),
    "vit": (86_567_656, 14, "transformer"),
    "mixer": (18_528_264, 34, "mlp"),
    "gpt2": (124_373_760, 25, "transformer"),
}


def entries(tmp_path: Path, size: str, **changes) -> dict[str, Entry]:
    return dict(zoo(setting(tmp_path, size=size, **changes)))


@pytest.mark.parametrize(("size", "expected"), [("small", SMALL), ("paper", PAPER)])
def test_models_have_the_specified_parameters_and_blocks(tmp_path: Path, size: str, expected) -> None:
    found = entries(tmp_path, size)
    assert {
        name: (found[name].parameters, len(found[name].blocks), found[name].family) for name in expected
    } == expected


def test_language_models_have_the_specified_sizes_with_the_plays_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hvp_engine.experiments import paper_zoo, small_zoo

    for module in (paper_zoo, small_zoo):
        monkeypatch.setattr(module, "vocabulary", lambda setting, name="": small_zoo.CHARACTERS)
    found = entries(tmp_path, "small")
    assert (found["gpt"].parameters, len(found["gpt"].blocks)) == (206_656, 25)
    assert (found["bert"].parameters, len(found["bert"].blocks)) == (214_101, 26)
    paper = entries(tmp_path, "paper")
    assert (paper["gpt"].parameters, len(paper["gpt"].blocks)) == (10_752_384, 25)


def test_the_papers_bert_has_two_layers_and_about_forty_million_parameters(tmp_path: Path) -> None:
    found = entries(tmp_path, "paper")["bert"]
    embeddings = (30_000 + 64 + 2 + 2) * 768
    layers = 2 * (12 * 768**2 + 13 * 768)
    heads = 2 * (768**2 + 768) + 2 * 768 + 30_000 + 2 * 768 + 2
    assert found.parameters == embeddings + layers + heads == 38_482_226
    assert len(found.blocks) == 14


def test_the_papers_vit_has_queries_keys_and_values_in_one_block(tmp_path: Path) -> None:
    found = entries(tmp_path, "paper")["vit"]
    shapes = {name: parameter.numel() for name, parameter in found.meta().named_parameters()}
    sizes = {block: sum(shapes[name] for name in names) for block, names in found.blocks.items()}
    width = 768
    assert list(sizes)[:5] == ["patch_embed", "0.qkv", "0.proj", "0.fc1", "0.fc2"]
    assert sizes["6.qkv"] == 3 * width**2
    assert sizes["11.proj"] == width**2
    assert sizes["11.fc1"] == sizes["0.fc2"] == 4 * width**2
    assert sizes["head"] == 1000 * width


def test_positions_and_class_tokens_are_no_blocks(tmp_path: Path) -> None:
    for found in entries(tmp_path, "tiny").values():
        names = [name for patterns in found.blocks.values() for name in patterns]
        assert not [name for name in names if "position" in name or "cls_token" in name or "wpe" in name]


def test_seeds_differ_the_same_seed_does_not_and_torchs_generator_is_left_alone(tmp_path: Path) -> None:
    found = entries(tmp_path, "tiny")["vit"]
    state = torch.get_rng_state()
    one, again, other = (found.build(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["layers.0.attention.query.weight"], other["layers.0.attention.query.weight"])


def test_the_drivers_gpt_has_the_papers_initialisation(tmp_path: Path) -> None:
    model = entries(tmp_path, "tiny")["gpt"].build(0)
    assert not model.config.damp_wo


def test_every_entry_of_the_papers_can_be_planned_without_data(tmp_path: Path) -> None:
    for name, found in entries(tmp_path, "paper").items():
        assert found.sketch is not None
        batch, count = found.sketch()
        with torch.device("meta"):
            value = found.loss(found.meta(), batch)
        assert (value[0] if isinstance(value, tuple) else value).is_meta, name
        assert count >= 1


def test_the_hessians_of_the_papers_see_the_papers_samples(tmp_path: Path) -> None:
    found = entries(tmp_path, "paper")
    seen = {}
    for name in ("vgg", "gpt", "gpt2"):
        batch, count = found[name].sketch()
        seen[name] = count * (batch.numel() if isinstance(batch, torch.Tensor) else len(batch[0]))
    assert seen == {"vgg": 1024, "gpt": 163_840, "gpt2": 245_760}
    batch, count = entries(tmp_path, "paper", options={"tokens": "491520"})["gpt2"].sketch()
    assert count * batch.numel() == 491_520


@pytest.mark.parametrize("name", ["mlp", "vgg", "gpt2"])
def test_data_that_no_package_carries_are_asked_for_by_their_option(tmp_path: Path, name: str) -> None:
    option = {"mlp": "mnist", "vgg": "imagenet", "gpt2": "openwebtext"}[name]
    with pytest.raises(ConfigurationError, match=f"--data {option}=PATH"):
        entries(tmp_path, "paper")[name].data(0)


def test_a_strange_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="order=sorted is neither random nor first"):
        entries(tmp_path, "small", options={"order": "sorted"})
