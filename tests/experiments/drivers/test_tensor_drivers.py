"""D12, D13, D14 and D17 at tiny size: files, tables, claims; and each gate against numbers that violate it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from zoo_entries import SIDE, entry, network

from hvp_engine.experiments import norm_places, tensors
from hvp_engine.experiments.continued import Continued, Studied
from hvp_engine.experiments.data import images
from hvp_engine.experiments.data.classification import NEWS
from hvp_engine.experiments.data.samples import Images, Samples
from hvp_engine.experiments.data.source import Source
from hvp_engine.experiments.drivers import complexity, curvature_against_gradient, gini, layernorm_place
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.heterogeneity import pearson_of_logs
from hvp_engine.experiments.registry import Setting
from hvp_engine.experiments.result import Result
from hvp_engine.experiments.roles import every_tensor
from hvp_engine.experiments.studied import chosen, gradient_batches, studied
from hvp_engine.experiments.tensors import TensorFacts, facts

Run = Callable[[str], Result]


def some(gradients: list[float], curvatures: list[float]) -> dict[str, TensorFacts]:
    pairs = zip(gradients, curvatures, strict=True)
    return {
        f"t{i}": TensorFacts("query", 10, gradient, curvature, 0.0) for i, (gradient, curvature) in enumerate(pairs)
    }


def test_d12_measures_all_listed_tensors_and_keeps_them_as_the_paper_does(run_tiny: Run, shared_results: Path) -> None:
    result, out = run_tiny("curvature-against-gradient"), shared_results / "curvature-against-gradient"
    assert [row[:2] for row in result.table.rows] == [("roberta", 15), ("vit", 15), ("resnet", 21)]
    kept = load_file(out / "lambda_and_gradient.safetensors")
    assert kept["resnet"].shape == (1, 21, 2) and bool((kept["vit"] > 0.0).all())
    x, y = kept["vit"].numpy()[0].T
    assert result.table.rows[1][2] == pytest.approx(pearson_of_logs(y, x))
    assert len(result.claims[0].values) == 1


def test_facts_are_read_again_and_are_those_of_the_network(shared_results: Path) -> None:
    setting = Setting("tiny", 1, shared_results / "any")
    entry = chosen(setting)[0]["roberta"]
    first = facts(setting, entry, 0)
    assert facts(setting, entry, 0) == first
    assert all(tensor.change == tensor.change for tensor in first.values())
    assert facts(setting, entry, 1) != first


def test_d12_fails_where_curvature_does_not_follow_the_gradient() -> None:
    good, bad = some([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]), some([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0])
    assert all(claim.holds for claim in curvature_against_gradient.claims({"a": [good], "b": [good]}))
    assert not any(claim.holds for claim in curvature_against_gradient.claims({"a": [good], "b": [bad]}))


def test_d13_holds_on_the_weights_of_random_networks(run_tiny: Run) -> None:
    result = run_tiny("gini")
    assert result.holds and [row[0] for row in result.table.rows] == ["roberta", "vit", "gpt", "resnet", "vgg"]
    listed = {row[0]: row[2] for row in result.table.rows}
    assert listed["gpt"] == "-" and 0.0 < float(listed["roberta"]) < 1.0


def test_d13_fails_where_transformers_are_as_even_as_cnns() -> None:
    families = {"vit": "transformer", "resnet": "cnn", "minilm": "transformer", "efficientnet-lite0": "cnn"}
    measures = {gini.WEIGHTS: [0.5], gini.LISTED: [0.4], gini.PER_ROOT: [0.4]}
    even = dict.fromkeys(families, measures)
    assert [claim.holds for claim in gini.claims(even, families)] == [False, False, False]
    uneven = {gini.WEIGHTS: [1.1], gini.LISTED: [0.5], gini.PER_ROOT: [0.6]}
    apart = {name: uneven if family == "transformer" else measures for name, family in families.items()}
    assert [claim.holds for claim in gini.claims(apart, families)] == [True, True, True]


def test_d14_holds_for_the_spread_of_masked_text(run_tiny: Run) -> None:
    result = run_tiny("layernorm-place")
    assert result.claims[0].holds and [row[:2] for row in result.table.rows] == [
        ("masked text", "post-LN"), ("masked text", "pre-LN"),
    ]  # fmt: skip


def test_d14_compares_networks_of_the_same_sizes_and_fails_where_they_are_alike(tmp_path: Path) -> None:
    setting = Setting("tiny", 1, tmp_path)
    pair = norm_places.entries(setting)["masked text"]
    shapes = [sorted(tuple(p.shape) for p in entry.meta().parameters() if p.dim() > 1) for entry in pair.values()]
    assert shapes[0] == shapes[1]
    assert len(pair["post"].blocks) == len(pair["pre"].blocks) == 6
    norms = {
        f"layers.{layer}.attention.{role}.weight"
        if role in ("query", "key", "value", "output")
        else f"layers.{layer}.{role}.weight": 1.0 + layer
        for layer in range(12)
        for role in norm_places.ROLES
    }
    growing = norm_places.Norms(norms)
    assert growing.over_layers == pytest.approx(12.0)
    alike = layernorm_place.claims({"masked text": {"post": [growing], "pre": [growing]}}, setting)
    assert [claim.holds for claim in alike] == [False, False]


def test_d17_weighs_every_tensor_at_every_stage(run_tiny: Run) -> None:
    result = run_tiny("complexity")
    assert [row[:2] for row in result.table.rows[:3]] == [("vit", "init"), ("vit", "0.5"), ("vit", "1.0")]
    assert len(result.table.rows) == 12 and all(row[4] == pytest.approx(row[2] / row[3]) for row in result.table.rows)


def test_d17_fails_where_the_ratios_are_alike() -> None:
    assert complexity.complexities(some([3.0, 4.0], [1.0, 2.0])) == pytest.approx((41.0 / 25.0, 1.5))
    ratios = {name: np.ones((1, 2)) for name in (*complexity.TRANSFORMERS, *complexity.CNNS)}
    assert not complexity.claims(ratios)[0].holds
    assert complexity.claims({**ratios, **{name: 2.0 * np.ones((1, 2)) for name in complexity.TRANSFORMERS}})[0].holds


def test_the_plan_of_the_papers_size_is_within_reach_of_one_gpu(tmp_path: Path) -> None:
    parts = curvature_against_gradient.plan(Setting("paper", 3, tmp_path))
    assert len(parts) >= 3 and all(part.flop > 0.0 and 0.0 < part.hours["H100"] < 24.0 for part in parts)


def test_d17_is_planned_with_its_trainings_for_every_tensor_at_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spectra(setting: Setting, entry: Entry, runs: int, **options: object) -> tuple[str, object, int]:
        return entry.name, entry.choose, runs

    monkeypatch.setattr(complexity, "planned_spectra", spectra)
    monkeypatch.setattr(complexity, "planned_curves", lambda setting, entry, names: (entry.name, *names))
    networks = ("vit", "gpt", "vgg", "resnet")
    assert complexity.plan(Setting("paper", 3, tmp_path)) == [
        *((name, "adam") for name in networks), *((name, every_tensor, 24) for name in networks),
    ]  # fmt: skip


@pytest.mark.parametrize("made", [Studied, partial(Continued, shapes=network)])
def test_weights_of_another_training_keep_their_statistics_of_batchnorm(tmp_path: Path, made: Any) -> None:
    def normed(seed: int) -> nn.Module:
        norm = nn.BatchNorm1d(SIDE)
        norm.running_mean.fill_(7.0)
        return nn.Sequential(norm, network())

    toy = entry()
    given = made("more", "cnn", normed, toy.loss, toy.data, toy.recipe)
    found = tensors.network(Setting("tiny", 1, tmp_path / "out"), given, 0)
    assert not found.training and bool((found[0].running_mean == 7.0).all())
    random = tensors.network(Setting("tiny", 1, tmp_path / "out"), replace(toy, build=normed), 0)
    assert bool((random[0].running_mean < 7.0).all())


def drawn_pictures(size: int, seed: int, train: int, test: int) -> Images:
    """Make random pictures in place of the photographs, whose package may not be installed."""
    pixels = torch.Generator().manual_seed(seed)
    parts = [
        Samples(torch.randn(count, 3, size, size, generator=pixels), torch.arange(count) % len(images.PHOTOGRAPHS))
        for count in (train, test)
    ]
    return Images(*parts, images.PHOTOGRAPHS, Source("photographs", "none", "drawn", ""))


def test_gradients_are_of_64_samples_and_the_hessian_of_the_first_eight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "photographs", drawn_pictures)
    for topic in NEWS:
        (tmp_path / "news" / topic).mkdir(parents=True)
        for number in range(60):
            (tmp_path / "news" / topic / f"{number:03}.txt").write_text(f"{topic} article {number} " * 10)
    setting = Setting("small", 1, tmp_path / "out", data={"bbcnews": tmp_path / "news"})
    for name, labels in (("roberta", "labels"), ("dinov2-s", 1)):
        made = studied(setting)[name]
        batches, fixed = gradient_batches(setting, made, 0), made.data(0).fixed[0]
        assert [len(batch[labels]) for batch in batches] == [16] * 4 and len(fixed[labels]) == 8
        assert torch.equal(batches[0][labels][:8], fixed[labels])


def test_d14_has_the_heads_of_bert_at_both_sizes(tmp_path: Path) -> None:
    for size, heads in (("tiny", 4), ("paper", 12)):
        pair = norm_places.entries(Setting(size, 1, tmp_path))["masked text"]
        assert {entry.meta().config.num_attention_heads for entry in pair.values()} == {heads}
    vits = norm_places.entries(Setting("paper", 1, tmp_path))["photographs"]
    assert {int(entry.meta().layers[0].attention.heads) for entry in vits.values()} == {12}


def test_d14_is_planned_without_data_for_networks_of_the_papers_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded(setting: Setting, entry: Entry, runs: int, **options: object) -> tuple[int, int]:
        assert 84e6 < entry.parameters < 87e6  # 12 layers of width 768
        batch, batches = entry.sketch()
        return len(batch[0]) * batches, runs

    monkeypatch.setattr(layernorm_place, "planned_spectra", recorded)
    missing = Setting("paper", 3, tmp_path, data={"shakespeare": tmp_path})
    assert layernorm_place.plan(missing) == [(16, 3), (16, 3), (128, 3), (128, 3)]
