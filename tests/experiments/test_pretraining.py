"""Pairs of language models: the pre-trained start is the trained one, and the papers' blocks are found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from zoo_entries import entry, setting

from hvp_engine.blocks import resolve
from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.continued import Continued
from hvp_engine.experiments.models.huggingface import library
from hvp_engine.experiments.pretrained_models import gpt2, smollm2_blocks
from hvp_engine.experiments.pretraining import pair


def test_a_continued_entry_knows_its_shapes_without_its_weights() -> None:
    def build(seed: int) -> nn.Module:
        raise AssertionError("weights are not needed for shapes")

    toy = entry()
    continued = Continued("more", toy.family, build, toy.loss, toy.data, toy.recipe, shapes=lambda: toy.build(0))
    assert list(continued.blocks) == list(toy.blocks) and continued.parameters == toy.parameters
    assert next(continued.meta().parameters()).is_meta


def test_the_pretrained_start_is_what_the_first_training_ended_with(tmp_path: Path) -> None:
    both = pair(setting(tmp_path, options={"steps": "2"}))
    random, again = both.random.build(0), both.random.build(0)
    start, once_more = both.pretrained.build(0), both.pretrained.build(0)
    for one, other in ((random, again), (start, once_more)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(random.wte.weight, start.wte.weight)
    assert both.random.recipe.steps == 2 and both.random.recipe == both.pretrained.recipe
    assert list(both.random.blocks) == list(both.pretrained.blocks)


def test_another_model_than_the_known_ones_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="model=llama is neither gpt nor smollm2-135m"):
        pair(setting(tmp_path, options={"model": "llama"}))


def test_gpt2_has_the_papers_25_blocks_and_is_planned_without_weights(tmp_path: Path) -> None:
    both = gpt2(setting(tmp_path))
    partition = resolve(both.pretrained.meta(), both.blocks)
    sizes = {name: block.numel for name, block in partition.blocks.items()}
    assert len(sizes) == 25 and both.random.parameters == 124_439_808
    assert sizes["wte"] == 50_257 * 768 and sizes["11.c_fc"] == 4 * 768 * 768
    assert {sizes[f"7.{name}"] for name in ("wq", "wk", "wv", "wo")} == {768 * 768}


def test_smollm2_has_twelve_blocks() -> None:
    config = library().LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=30, num_attention_heads=2
    )
    with torch.device("meta"):
        model = library().LlamaForCausalLM(config)
    assert len(resolve(model, smollm2_blocks(model)).blocks) == 12
