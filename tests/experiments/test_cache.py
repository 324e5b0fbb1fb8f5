"""The caches: read where finished, resumed where not, kept apart where anything that decides a number differs."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from zoo_entries import SIDE, batches, entry, setting

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments import cache
from hvp_engine.experiments.batches import Batches
from hvp_engine.experiments.entry import Entry
from hvp_engine.experiments.optimizers import constant, cosine

ROOT = Path(__file__).parents[1]


def trained_labels(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rates of the trainings that are really done, as they begin."""
    rates: list[float] = []
    original = cache._train

    def counted(*arguments, **options):
        rates.append(arguments[3])
        return original(*arguments, **options)

    monkeypatch.setattr(cache, "_train", counted)
    return rates


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_curves_are_trained_once_over_the_grid_and_read_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = trained_labels(monkeypatch)
    first = cache.curves(setting(tmp_path), entry(), "sgd", 1)
    assert rates == [0.3, 0.1, first.rate]
    grid = cache.grid(setting(tmp_path), entry(), "sgd")
    again = cache.curves(setting(tmp_path), entry(), "sgd", 1)
    assert len(rates) == 3
    assert list(grid) == [0.3, 0.1]
    assert first.rate == min(grid, key=lambda rate: grid[rate].final)
    np.testing.assert_array_equal(first.losses, again.losses)
    np.testing.assert_array_equal(first.gradient_norms, again.gradient_norms)
    assert (first.held_out, first.accuracy, first.at_edge) == (again.held_out, again.accuracy, again.at_edge)
    assert math.isfinite(first.held_out)
    assert 0.4 < first.accuracy <= 1.0
    assert first.losses[-3:].mean() < first.losses[0]


def test_seeds_differ_and_the_same_seed_gives_the_same_bits_in_another_cache(tmp_path: Path) -> None:
    one, other = (cache.curves(setting(tmp_path / "a"), entry(), "sgd", seed) for seed in (0, 1))
    again = cache.curves(setting(tmp_path / "b"), entry(), "sgd", 1)
    assert not np.array_equal(one.losses, other.losses)
    np.testing.assert_array_equal(other.losses, again.losses)


def test_a_damaged_or_foreign_curve_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.curves(setting(tmp_path), entry(), "sgd", 0)
    path = next((tmp_path / "cache/curves/tiny").glob(f"toy-sgd-{first.rate:g}-0.npz"))
    rates = trained_labels(monkeypatch)
    path.write_bytes(path.read_bytes()[:-40])
    np.testing.assert_array_equal(cache.curves(setting(tmp_path), entry(), "sgd", 0).losses, first.losses)
    assert rates == [first.rate]
    rates.clear()
    wider = entry(build=lambda: nn.Sequential(nn.Linear(SIDE, 9), nn.Tanh(), nn.Linear(9, 3)))
    cache.grid(setting(tmp_path), wider, "sgd")  # another model under the same name
    assert rates == [0.3, 0.1]
    rates.clear()
    longer = cache.curves(setting(tmp_path), entry(steps=30), "sgd", 0)
    assert len(longer.losses) == 30
    assert rates[:2] == [0.3, 0.1]


def permuted(seed: int) -> Batches:
    found = batches(seed)
    return replace(found, training=lambda: ((x, labels.flip(0)) for x, labels in found.training()))


def other_text(seed: int) -> Batches:
    return replace(batches(seed), source={"name": "drawn", "digest": "another"})


@pytest.mark.parametrize(
    "changes",
    [
        {"data": permuted},
        {"data": other_text},
        {"data": lambda seed: replace(batches(seed), held_out=batches(seed).fixed)},
        {"recipe": replace(entry().recipe, schedule=lambda steps: constant())},
        {"recipe": replace(entry().recipe, schedule=partial(cosine, last=0.1))},
        {"loss": lambda model, batch: 2.0 * nn.functional.cross_entropy(model(batch[0]), batch[1])},
    ],
    ids=["labels", "text", "held out", "constant", "last rate", "loss"],
)
def test_other_data_another_schedule_or_loss_is_trained_anew(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.curves(setting(tmp_path), entry(), "sgd", 0)
    rates = trained_labels(monkeypatch)
    cache.curves(setting(tmp_path), entry(), "sgd", 0)
    assert rates == []
    cache.curves(setting(tmp_path), replace(entry(), **changes), "sgd", 0)
    assert rates[:2] == [0.3, 0.1]


def test_options_of_spectra_train_nothing_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.curves(setting(tmp_path), entry(), "sgd", 0)
    rates = trained_labels(monkeypatch)
    for options in ({"m": "4"}, {"probes": "2"}, {"bn": "raw"}):
        cache.curves(setting(tmp_path, options=options), entry(), "sgd", 0)
    assert rates == []
    cache.curves(setting(tmp_path, options={"steps": "20"}), entry(), "sgd", 0)
    assert rates == [0.3, 0.1]


def test_what_decides_a_number_keeps_caches_apart_and_what_does_not_shares_them(tmp_path: Path) -> None:
    variants = [
        {},
        {"seeds": 5},
        {"options": {"anything": "1"}},
        {"size": "small"},
        {"options": {"bn": "raw"}},
        {"precision": "fp64"},
        {"data": {"text": tmp_path / "a"}},
        {"data": {"text": tmp_path / "b"}},
    ]
    folders = [cache.folder(setting(tmp_path, **changes), "spectra") for changes in variants]
    assert folders[0] == folders[1] == folders[2] == tmp_path / "cache/spectra/tiny"
    assert len(set(folders)) == 6


def test_checkpoints_are_those_of_the_training_at_the_best_rate(tmp_path: Path) -> None:
    start, half, end = (cache.checkpoint(setting(tmp_path), entry(), stage, 1) for stage in ("init", "0.5", "1.0"))
    best = cache.curves(setting(tmp_path), entry(), "adam", 1)
    assert same(start, entry().build(1))
    assert not any(model.training for model in (start, half, end))
    # The losses of the checkpoints on the batches of the steps that followed, and after the last step.
    stream = batches(1).training()
    seen = [next(stream) for _ in range(20)]
    for model, step in ((start, 0), (half, 10)):
        inputs, labels = seen[step]
        loss = float(nn.functional.cross_entropy(model(inputs), labels).detach())
        assert loss == pytest.approx(best.losses[step], rel=1e-5)
    inputs, labels = batches(1).held_out[0]
    assert float(nn.functional.cross_entropy(end(inputs), labels).detach()) == pytest.approx(best.held_out, rel=1e-5)


def test_a_checkpoint_that_was_deleted_is_trained_again(tmp_path: Path) -> None:
    before = cache.checkpoint(setting(tmp_path), entry(), "0.5", 0)
    for path in (tmp_path / "cache/curves/tiny/checkpoints").iterdir():
        path.unlink()
    assert same(cache.checkpoint(setting(tmp_path), entry(), "0.5", 0), before)


def test_a_stage_without_a_checkpoint_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no checkpoint after 0\.3 .* take init or one of 0\.5, 1\.0"):
        cache.checkpoint(setting(tmp_path), entry(), "0.3", 0)


def test_an_optimizer_without_a_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"toy has no grid of rates for 'signum'; it has one for sgd, adam"):
        cache.curves(setting(tmp_path), entry(), "signum", 0)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(SIDE, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def test_batchnorm_is_calibrated_unless_it_is_asked_for_raw(tmp_path: Path) -> None:
    model = cache.checkpoint(setting(tmp_path), entry(build=normed), "init", 0)
    raw = cache.checkpoint(setting(tmp_path, options={"bn": "raw"}), entry(build=normed), "init", 0)
    assert not raw[1].running_mean.any()
    inputs = [batch[0] for batch in batches(0).fixed]
    expected = torch.stack([model[0](x).mean(0) for x in inputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, expected.detach(), rtol=1e-5, atol=1e-6)


def test_spectra_are_computed_once_and_named_by_model_stage_and_seed(tmp_path: Path) -> None:
    found = cache.spectra(setting(tmp_path), entry(), "init", 1)
    assert list(found) == ["0", "2"]
    assert found.settings["steps"] == 12
    folder = tmp_path / "cache/spectra/tiny/toy-init-1"
    written = (folder / "manifest.json").stat().st_mtime_ns
    again = cache.spectra(setting(tmp_path), entry(), "init", 1)
    assert (folder / "manifest.json").stat().st_mtime_ns == written
    np.testing.assert_array_equal(found["0"].alphas, again["0"].alphas)
    whole = cache.spectra(
        setting(tmp_path), entry(), "init", 1, blocks={"full": ["*"]}, steps=5, probes=2, label="full"
    )
    assert list(whole) == ["full"]
    assert (tmp_path / "cache/spectra/tiny/toy-init-1-full-m5-p2").is_dir()
    assert cache.spectra(setting(tmp_path, options={"m": "4"}), entry(), "1.0", 0).settings["steps"] == 4


def test_an_entry_of_ones_own_has_files_of_its_own_name(tmp_path: Path) -> None:
    own: Entry = replace(entry(), name="own")
    cache.curves(setting(tmp_path), own, "sgd", 0)
    assert {path.name.split("-")[0] for path in (tmp_path / "cache/curves/tiny").glob("*.npz")} == {"own"}


def test_an_unknown_model_is_refused_with_the_zoos(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no model 'vggg' at size tiny; the zoo has mlp, vgg"):
        cache.curves(setting(tmp_path), "vggg", "sgd", 0)


def test_a_process_that_is_killed_loses_the_training_in_progress_only(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from zoo_entries import entry, setting
        from hvp_engine.experiments import cache
        train, done = cache._train, []

        def slow(*arguments, **options):
            if len(done) == 1:
                print("second", flush=True)
                time.sleep(600)
            done.append(arguments[3])
            return train(*arguments, **options)

        cache._train = slow
        cache.curves(setting(Path(sys.argv[1])), entry(), "sgd", 0)
        """
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert first == "second\n"
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache/curves/tiny").glob("*.npz")}
    assert list(kept) == ["toy-sgd-0.3-0.npz"]
    time.sleep(0.01)
    cache.curves(setting(tmp_path), entry(), "sgd", 0)
    found = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache/curves/tiny").glob("*.npz")}
    assert found.keys() == {"toy-sgd-0.3-0.npz", "toy-sgd-0.1-0.npz"}
    assert found["toy-sgd-0.3-0.npz"] == kept["toy-sgd-0.3-0.npz"]
