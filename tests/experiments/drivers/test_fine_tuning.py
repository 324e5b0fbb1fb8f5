"""D15 at the size of seconds: two optimizers on networks without weights; files, schema, resuming, claims that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import tuning
from hvp_engine.experiments.drivers import fine_tuning
from hvp_engine.experiments.drivers.fine_tuning import Found
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


def holds(text: dict[str, float], image: dict[str, float]) -> list[bool]:
    claims = fine_tuning._claims(*({name: found(loss) for name, loss in one.items()} for one in (text, image)))
    return [claim.holds for claim in claims]


def test_the_claims_hold_on_what_was_measured_and_fail_where_sgd_is_not_behind() -> None:
    paper = {"adam": 0.725, "rmsprop": 0.8, "plain-sgd": 0.827, "sgd": 0.847, "signsgd": 0.798, "signum": 0.738}
    alike = dict.fromkeys(paper, 0.5)
    assert holds(paper, alike) == [True, True, True]
    assert holds(alike, alike) == [False, False, True]
    assert holds(paper, {**alike, "sgd": 0.9, "plain-sgd": 0.9}) == [True, True, False]


@pytest.mark.parametrize("function", [fine_tuning.run, fine_tuning.plan])
def test_the_papers_size_is_refused(function: Callable[[Setting], object], out: Path) -> None:
    with pytest.raises(ConfigurationError, match="give size='small'"):
        function(Setting("paper", 1, out))
