"""What a driver reads is looked for before it computes."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import cache, small_zoo, weights
from hvp_engine.experiments.data import images
from hvp_engine.experiments.drivers import fine_tuning
from hvp_engine.experiments.ready import ready
from hvp_engine.experiments.registry import Setting

TRAINING = ("curvature_against_gradient", "full_spectra", "four_blocks", "gini", "js_against_gap", "sgd_against_adam")
SPEECHES = "HAMLET.\nTo be, or not to be, that is the question:\n\n" * 500


def two_plays(folder: Path) -> Path:
    folder.mkdir()
    for name in ("one_gut.txt", "two_gut.txt"):
        (folder / name).write_text(SPEECHES)
    return folder


@pytest.mark.parametrize("driver", [*TRAINING, "js_heatmaps", "off_diagonal_strength"])
def test_a_missing_library_is_told_before_anything_is_trained(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*args: object, **kwargs: object) -> None:
        raise AssertionError("it began to compute")

    module = importlib.import_module(f"hvp_engine.experiments.drivers.{driver}")
    for name in ("measure", "gap", "facts", "identity", "four"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, computed)
    if hasattr(module, "pair"):  # of language models, which need their texts
        monkeypatch.setattr(module, "pair", lambda setting: types.SimpleNamespace(random="gpt"))
    monkeypatch.setattr(cache, "spectra", computed)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigurationError, match="transformers"):
        module.run(Setting("small", 1, tmp_path / "out"))


@pytest.mark.parametrize("driver", ["mlp_mixer", "layernorm_place"])
def test_missing_photographs_are_told_before_anything_is_computed(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"hvp_engine.experiments.drivers.{driver}")
    for name in ("measure", "gap", "facts", "Norms"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(small_zoo, "_photographs", lambda: images.photographs(32))  # as if no test had read them
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "skimage" else find_spec(name, *rest)
    )
    plays = {"shakespeare": two_plays(tmp_path / "plays")}
    with pytest.raises(ConfigurationError, match="scikit-image is not installed"):
        module.run(Setting("small", 1, tmp_path / "out", data=plays))


def test_data_that_are_not_given_are_told_for_the_last_model_too(tmp_path: Path) -> None:
    setting = Setting("paper", 1, tmp_path / "out", data={"shakespeare": two_plays(tmp_path / "plays")})
    with pytest.raises(ConfigurationError, match="openwebtext"):
        ready(setting, ("gpt", "gpt2"))


def test_a_file_that_is_no_weights_is_refused_before_other_models_are_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = types.ModuleType("efficientnet_lite_pytorch")
    library.EfficientNet = types.SimpleNamespace(from_name=lambda *args, **options: nn.Linear(2, 2))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library.__name__, library)
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for file in ("empty.pth", "other.pth"):
        setting = Setting("small", 1, tmp_path / "out", weights={"efficientnet-lite0": tmp_path / file})
        with pytest.raises(ConfigurationError, match="give a state dict of EfficientNet-lite0"):
            weights.load("efficientnet-lite0", setting)
    monkeypatch.setattr(fine_tuning, "text_entry", lambda setting: "gpt")  # its weights may not be installed
    monkeypatch.setattr(fine_tuning, "compared", lambda *args: pytest.fail("it began to tune"))
    with pytest.raises(ConfigurationError, match="give a state dict of EfficientNet-lite0"):
        fine_tuning.run(setting)
