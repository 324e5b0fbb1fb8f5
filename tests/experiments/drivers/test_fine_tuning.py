"""D15 at the size of seconds: two optimizers on networks without weights; files, schema, resuming, claims that fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import studied_paper, tuning, weights
from hvp_engine.experiments.compared import Found
from hvp_engine.experiments.drivers import fine_tuning
from hvp_engine.experiments.fine_tuned import image_entry, text_entry
from hvp_engine.experiments.registry import Setting, find
from hvp_engine.experiments.result import Result
from hvp_engine.experiments.training import Curve
from hvp_engine.experiments.tuning import Tuned


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "fine-tuning"


@pytest.fixture(scope="module")
def result(out: Path) -> Result:
    return fine_tuning.run(Setting("tiny", 1, out))


def test_there_is_a_row_per_model_and_optimizer_with_all_metrics(result: Result) -> None:
    assert [row[:2] for row in result.table.rows] == [
        ("bert-bytes", "Adam"), ("bert-bytes", "SGD"), ("resnet-gaussian", "Adam"), ("resnet-gaussian", "SGD"),
    ]  # fmt: skip
    assert result.table.columns[6:] == ("accuracy", "worst", "mean", "best", "ece", "mce", "brier", "nll", "norm")
    for row in result.table.rows:
        assert 0 <= row[7] <= row[8] <= row[9] <= 1


def test_all_files_are_written(result: Result, out: Path) -> None:
    result.write(out, find("fine-tuning"))
    assert {"claim.json", "figure.pdf", "figure.png", "manifest.json", "table.csv", "table.md"} <= {
        path.name for path in out.iterdir()
    }
    assert json.loads((out / "claim.json").read_text())["id"] == "D15"


def test_what_is_finished_is_read_and_not_trained_again(
    result: Result, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_training(*arguments: object, **options: object) -> Curve:
        raise AssertionError("trained again")

    monkeypatch.setattr(tuning, "fit", no_training)
    assert fine_tuning.run(Setting("tiny", 1, out)).table == result.table
    with pytest.raises(AssertionError, match="trained again"):
        fine_tuning.run(Setting("tiny", 1, out, options={"clip": "0.5"}))


def test_a_damaged_file_is_trained_again(result: Result, out: Path) -> None:
    files = sorted((out.parent / "cache" / "tuning" / "tiny").glob("*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert fine_tuning.run(Setting("tiny", 1, out)).table == result.table


def test_the_loss_that_is_trained_on_is_of_the_entrys_recipe(out: Path) -> None:
    setting = Setting("tiny", 1, out, options={"steps": "8", "batch": "4", "clip": "0", "schedule": "warmup"})
    for entry in (text_entry(setting), image_entry(setting)):
        assert (entry.recipe.steps, entry.recipe.batch, entry.recipe.clip) == (8, 4, None)
        found = tuning.tuned(setting, entry, "adam", 1e-3, 0, tested=True)
        assert len(found.losses) == 8
        assert found.steps.tolist() == [2, 4, 6, 8]
        assert found.accuracies[-1] == np.mean(found.logits.argmax(axis=1) == found.labels)


def found(loss: float) -> Found:
    losses = np.full(10, loss)
    curve = Curve(losses, losses, rate=1.0)
    seed = Tuned(losses, losses, 1.0, np.array([10]), np.array([0.5]), np.zeros((2, 2)), np.zeros(2, dtype=np.int64))
    return Found(curve, {1.0: curve}, [seed])


def holds(*networks: dict[str, float], cnns: int = 1) -> list[bool]:
    made = [{name: found(loss) for name, loss in one.items()} for one in networks]
    return [claim.holds for claim in fine_tuning.claims(made[: len(made) - cnns], made[len(made) - cnns :])]


def test_the_claims_hold_on_what_was_measured_and_fail_where_sgd_is_not_behind() -> None:
    paper = {"adam": 0.725, "rmsprop": 0.8, "plain-sgd": 0.827, "sgd": 0.847, "signsgd": 0.798, "signum": 0.738}
    alike = dict.fromkeys(paper, 0.5)
    assert holds(paper, alike) == [True, True, True]
    assert holds(alike, alike) == [False, False, True]
    assert holds(paper, {**alike, "sgd": 0.9, "plain-sgd": 0.9}) == [True, True, False]

    assert holds(paper, alike, alike) == [False, False, True]  # of two Transformers both have to show it
    assert holds(paper, cnns=0) == [True, True]  # the paper's size with data for texts only


class Words:
    """A tokenizer that gives every text as its length, and a pair as the sum."""

    def __call__(self, texts: list[str], seconds: list[str] | None, *, max_length: int, **options: object) -> object:
        both = [(text, "") for text in texts] if seconds is None else zip(texts, seconds, strict=True)
        ids = torch.tensor([[len(first) + len(second)] * max_length for first, second in both])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The paper's size with words in pairs, and a RoBERTa of one layer for its weights."""
    from transformers import RobertaConfig, RobertaModel

    def body(name: str, setting: Setting) -> torch.nn.Module:
        config = RobertaConfig(
            vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        return RobertaModel(config, add_pooling_layer=False)

    network = studied_paper.NETWORKS["roberta-base"]._replace(features=8)
    monkeypatch.setitem(studied_paper.NETWORKS, "roberta-base", network)
    monkeypatch.setattr(weights, "load", body)
    monkeypatch.setattr(weights, "tokenizer", lambda name, setting: Words())
    rows = [{"premise": "a" * i, "hypothesis": "b" * 20, "label": "entailment" if i % 2 else "not_entailment"}
            for i in range(1, 41)]  # fmt: skip
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return Setting("paper", 1, tmp_path / "out", data={"rte": tmp_path}, options={"steps": "2"})


def test_at_the_papers_size_all_optimizers_tune_on_the_data_that_is_given(paper: Setting) -> None:
    result = fine_tuning.run(paper)
    assert [row[:3] for row in result.table.rows] == [
        ("roberta-base-rte", "Adam", "1e-05"), ("roberta-base-rte", "RMSprop", "1e-05"),
        ("roberta-base-rte", "SGD", "0.01"), ("roberta-base-rte", "SGD+m", "0.001"),
        ("roberta-base-rte", "SignSGD", "1e-05"), ("roberta-base-rte", "Signum", "1e-06"),
    ]  # fmt: skip
    assert len(result.claims) == 2 and result.settings["data"][0]["name"] == "rte"
    assert len(list((paper.out.parent / "cache" / "tuning" / "paper").iterdir())) == 6  # nothing is trained twice


def test_both_texts_of_a_pair_are_read(paper: Setting) -> None:
    (entry,) = studied_paper.entries(paper).values()
    batches = entry.data(0)
    assert batches.fixed[0]["input_ids"].shape == (8, 128) and batches.fixed[0]["input_ids"].min() > 20
    assert [len(batch["labels"]) for batch in batches.held_out] == [len(b["labels"]) for b in batches.held_out] == [40]


def test_the_papers_size_without_data_is_refused_and_says_what_to_give() -> None:
    with pytest.raises(ConfigurationError, match="--data rte=DIR --weights roberta-base=DIR"):
        fine_tuning.run(Setting("paper", 1, Path("out")))


def test_the_papers_size_is_planned_without_data_for_all_networks_and_tasks() -> None:
    parts = {part.what.split(" ")[2]: part for part in fine_tuning.plan(Setting("paper", 5, Path("out")))}
    assert len(parts) == 7 + 2 + 2
    sst2, rte = parts["roberta-base-sst2"], parts["roberta-base-rte"]
    assert "30 of them" in sst2.what  # six optimizers, five seeds
    assert sst2.flop / rte.flop == pytest.approx(60_614 // 32 * 32 / (2241 // 8 * 8), rel=1e-3)
    body, tokens = 85_054_464, 30 * 20 * (60_614 // 32 * 32) * 128  # weights that multiply every token
    assert sst2.flop == pytest.approx(6 * body * tokens, rel=0.1)
    assert 0.0 < sst2.hours["H100"] < sst2.hours["A100"]
