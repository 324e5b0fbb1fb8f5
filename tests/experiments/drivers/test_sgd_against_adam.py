"""D11: the claims decide both ways; a run of seconds writes what it should."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hvp_engine.experiments import run
from hvp_engine.experiments.drivers import sgd_against_adam
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.gaps import Gap
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.training import Curve


def curve(final: float, start: float = 4.0, steps: int = 100) -> Curve:
    falling = np.linspace(start, final, steps - 10) if math.isfinite(final) else np.full(steps - 10, final)
    losses = np.concatenate([falling, np.full(10, final)])
    return Curve(losses, np.ones(steps), final, 0.5, 0.1)


def gap(name: str, sgd: list[float], adam: list[float]) -> Gap:
    return Gap(name, tuple(map(curve, sgd)), tuple(map(curve, adam)))


def gaps(**changes: Gap) -> dict[str, Gap]:
    found = {
        "mlp": gap("mlp", [0.005] * 3, [0.001] * 3),
        "vgg": gap("vgg", [0.001] * 3, [0.001] * 3),
        "resnet": gap("resnet", [0.03, 0.002, 0.002], [0.001] * 3),  # one bad seed does not decide
        "vit": gap("vit", [1.7] * 3, [0.7] * 3),
        "gpt": gap("gpt", [2.45] * 3, [1.2] * 3),
        "bert": gap("bert", [3.0] * 3, [2.5] * 3),
    }
    return {**found, **changes}


def failing(changes: dict[str, Gap], entropy: float = 3.0) -> list[str]:
    claims, _ = sgd_against_adam.decide(gaps(**changes), entropy)
    return [claim.statement for claim in claims if not claim.holds]


def test_the_papers_pattern_fulfils_every_claim() -> None:
    claims, notes = sgd_against_adam.decide(gaps(), 3.0)
    assert len(claims) == 7
    assert all(claim.holds for claim in claims)
    assert notes == ()


@pytest.mark.parametrize(
    ("changes", "statement"),
    [
        ({"vgg": gap("vgg", [0.1] * 3, [0.01] * 3)}, "gap of vgg <= 0.02"),
        ({"resnet": gap("resnet", [0.1, 0.1, 0.01], [0.01] * 3)}, "gap of resnet <= 0.02"),
        ({"vit": gap("vit", [0.8] * 3, [0.7] * 3)}, "gap of vit >= 0.2"),
        ({"bert": gap("bert", [2.52] * 3, [2.5] * 3)}, "gap of bert >= 0.05"),
    ],
)
def test_each_claim_can_fail(changes: dict[str, Gap], statement: str) -> None:
    assert failing(changes) == [statement]


def test_a_gpt_that_adam_trains_no_sooner_fails_both_of_its_claims() -> None:
    assert failing({"gpt": gap("gpt", [2.4] * 3, [2.4] * 3)}) == [
        "gap of gpt >= 0.1",
        "Adam reaches SGD's loss of gpt 1.5 x sooner",
    ]


def test_bert_on_its_plateau_is_not_decided_on_and_that_is_said() -> None:
    claims, notes = sgd_against_adam.decide(gaps(), 2.7)
    assert not [claim for claim in claims if "bert" in claim.statement]
    assert notes[0].startswith("The gap of bert is not decided on: Adam's loss 2.500 is less than 0.3 nats")


def test_a_training_that_diverged_with_every_rate_fails_its_claim() -> None:
    assert failing({"vit": gap("vit", [math.inf] * 3, [math.inf] * 3)}) == ["gap of vit >= 0.2"]


def test_a_plateau_that_cannot_be_told_is_missed_before_the_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(entry: Entry, seed: int) -> float:
        raise KeyError(1)

    monkeypatch.setattr(sgd_against_adam, "ready", lambda setting, models: None)
    monkeypatch.setattr(sgd_against_adam, "plateau", refused)
    monkeypatch.setattr(sgd_against_adam, "gap", lambda setting, name: pytest.fail("it began to train"))
    with pytest.raises(KeyError):
        sgd_against_adam.run(Setting("paper", 1, tmp_path / "out"))


def test_a_tiny_run_writes_table_figures_and_claims(tmp_path: Path) -> None:
    result = run("sgd-against-adam", size="tiny", seeds=1, out=tmp_path / "out")
    assert [row[0] for row in result.table.rows] == ["mlp", "gpt"]
    assert all(len(row) == len(result.table.columns) for row in result.table.rows)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"manifest.json", "table.csv", "claim.json", "figure.png", "figure.pdf", "grid.png"} <= names
    trained = {path.name.split("-")[0] for path in (tmp_path / "cache/curves/tiny").glob("*.npz")}
    assert trained == {"mlp", "gpt"}
