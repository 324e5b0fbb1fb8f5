"""Saving, loading, drawing and tabulating a mapping of spectra."""

import errno
import json
import math
import os

import numpy as np
import pytest
import torch

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Estimate, Spectrum
from hvp_engine.results.table import summary_table
from hvp_engine.system import files as runs
from hvp_engine.system.formatting import format_estimate, format_number

ARRAYS = ("alphas", "betas", "nodes", "weights", "steps")


def random_spectra(blocks=3, probes=3, scale=1.0, prefix="layer"):
    rng = np.random.default_rng(blocks)
    steps = np.array([5, 4, 5])[:probes]
    return Spectra(
        [
            Spectrum.from_tridiagonal(
                f"{prefix}.{i}/weight",
                1000 * (i + 1),
                scale * rng.normal(size=(probes, 5)),
                scale * rng.uniform(0.1, 1, size=(probes, 4)),
                steps,
            )
            for i in range(blocks)
        ],
        {"config": {"seed": 3, "precision": "fp64"}, "blocks": ["x"], "model": "µ"},  # keys as slq writes them
    )


def test_round_trip_is_bit_exact(tmp_path):
    spectra = random_spectra()
    spectra.save(tmp_path / "a" / "run")
    loaded = Spectra.load(tmp_path / "a" / "run")
    assert list(loaded) == list(spectra)
    assert loaded.manifest == spectra.manifest
    for name, spectrum in spectra.items():
        assert loaded[name].numel == spectrum.numel
        for key in ARRAYS:
            assert getattr(loaded[name], key).dtype == getattr(spectrum, key).dtype
            assert getattr(loaded[name], key).tobytes() == getattr(spectrum, key).tobytes()


def test_manifest_names_the_blocks_and_folder_holds_nothing_else(tmp_path):
    random_spectra(2).save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "spectra.safetensors"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["blocks"][1] == {"name": "layer.1/weight", "numel": 2000, "probes": 3, "m": 5}
    assert manifest["format_version"] == 1
    assert (tmp_path / "spectra.safetensors").stat().st_mode == (tmp_path / "manifest.json").stat().st_mode


def test_the_same_spectra_make_the_same_files(tmp_path):
    written = set()
    for number in range(8):
        random_spectra(2).save(tmp_path / str(number))
        written.add((tmp_path / str(number) / "spectra.safetensors").read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize("failing_sync", [1, 2])
def test_full_disk_keeps_the_earlier_run(tmp_path, monkeypatch, failing_sync):
    first = random_spectra(2)
    first.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == failing_sync:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"disk is full.*intact.*free some space"):
        random_spectra(3).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_full_disk_met_by_safetensors_is_explained(tmp_path, monkeypatch):
    def full(*_):
        raise runs.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(runs, "save_file", full)
    with pytest.raises(RunFolderError, match="disk is full"):
        runs.write_tensors_atomic(tmp_path / "t.safetensors", {"a": np.ones(3)})
    assert not list(tmp_path.iterdir())


def test_tensors_of_every_kind_are_written(tmp_path):
    tensors = {"b": torch.arange(6).reshape(2, 3).T.to(torch.bfloat16), "n": np.arange(4)[::2]}
    runs.write_tensors_atomic(tmp_path / "t", tensors, {"key": "value"})
    read, metadata = runs.read_tensors(tmp_path / "t")
    assert torch.equal(read["b"], tensors["b"])
    assert read["n"].tolist() == [0, 2]
    assert metadata["key"] == "value"


def damage(folder, what):
    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text())
    tensors = folder / "spectra.safetensors"
    if what == "foreign":
        manifest.write_text('{"hello": 1}')
    elif what == "newer":
        manifest.write_text(json.dumps({**document, "format_version": 99}))
    elif what == "not json":
        manifest.write_text("{")
    elif what == "no blocks":
        del document["blocks"]
        manifest.write_text(json.dumps(document))
    elif what == "no manifest":
        manifest.unlink()
    elif what == "no tensors":
        tensors.unlink()
    elif what == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif what == "bit flip":
        data = bytearray(tensors.read_bytes())
        data[-3] ^= 1
        tensors.write_bytes(data)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("foreign", "not written by hvp_engine"),
        ("newer", "format version 99.*upgrade"),
        ("not json", "not JSON"),
        ("no blocks", "damaged.*blocks"),
        ("no manifest", "not a run folder"),
        ("no tensors", "spectra.safetensors"),
        ("truncated", "not a whole safetensors file"),
        ("bit flip", "not the file that manifest.json describes"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, what, message):
    random_spectra().save(tmp_path)
    damage(tmp_path, what)
    with pytest.raises(RunFolderError, match=message):
        Spectra.load(tmp_path)


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="no run folder"):
        Spectra.load(tmp_path / "nothing")


def test_manifest_that_is_not_json_is_refused_before_writing(tmp_path):
    spectra = random_spectra()
    spectra.manifest["loss"] = math.nan
    with pytest.raises(ConfigurationError, match="manifest cannot be written as JSON"):
        spectra.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_empty_and_repeated_blocks_are_refused():
    block = random_spectra(1)["layer.0/weight"]
    with pytest.raises(ConfigurationError, match="no spectra"):
        Spectra([])
    with pytest.raises(ConfigurationError, match="two spectra have the name"):
        Spectra([block, block])


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
@pytest.mark.parametrize(("blocks", "probes", "scale"), [(1, 1, 1.0), (1, 3, 1e-9), (5, 3, 1e9)])
def test_figures_are_written(tmp_path, suffix, blocks, probes, scale):
    spectra = random_spectra(blocks, probes, scale, prefix="a.very.long.shared.prefix.of.the.modules")
    for draw, name in ((spectra.plot, "spectra"), (spectra.plot_js, "js")):
        draw(tmp_path / f"{name}.{suffix}")
        head = (tmp_path / f"{name}.{suffix}").read_bytes()[:8]
        assert head.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix])


def test_figure_of_a_zero_block_is_written(tmp_path):
    zero = Spectrum.from_tridiagonal("zero", 10, np.zeros((2, 1)), np.zeros((2, 0)), [1, 1])
    Spectra([zero]).plot(tmp_path / "zero.png")
    assert (tmp_path / "zero.png").stat().st_size > 1000


def test_figures_name_the_blocks_and_facts(tmp_path):
    random_spectra(3).plot(tmp_path / "s.svg")
    text = (tmp_path / "s.svg").read_text().replace("\u00a0", " ")
    for word in ("layer.2/weight", "n = 3,000", "4–5 Lanczos steps", "3 probes", "seed 3", "precision fp64"):
        assert word in text


def test_bad_figure_paths_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="image suffix"):
        random_spectra(1).plot(tmp_path / "figure.xyz")
    with pytest.raises(RunFolderError, match="could not be written"):
        random_spectra(1).plot(tmp_path / "missing" / "figure.png")


def test_summary_has_every_block_and_its_numbers():
    spectra = random_spectra(3)
    lines = spectra.summary().splitlines()
    for name, spectrum in spectra.items():
        (line,) = [line for line in lines if line.startswith(name)]
        assert f"{spectrum.numel:,}" in line
        assert format_estimate(spectrum.trace()) in line
        assert format_number(spectrum.extremes()[1]) in line
        assert "4–5" in line
    assert format_number(spectra.js0(), 3) in lines[-1]
    assert summary_table(spectra).row_count == 3
    assert "nan" not in random_spectra(1, probes=1).summary()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.344, "12.34"),
        (0.0, "0"),
        (-5.6781e-9, "-5.678e-09"),
        (79427.0, "7.943e+04"),
        (math.nan, "–"),
        (9999.6, "1.000e+04"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (12.3444, 0.21, "12.34 ± 0.21"),
        (1.2344e-9, 2.1e-11, "(1.234 ± 0.021)e-09"),
        (0.5, 31.0, "0 ± 31"),
        (12.3444, 4.5e-7, "12.34 ± 4.5e-07"),
        (3.0, math.nan, "3.000 ± –"),
        (0.0, 0.0, "0.000 ± 0.000"),
    ],
)
def test_estimates_share_the_form_of_their_error(value, stderr, text):
    assert format_estimate(Estimate(value, stderr)) == text
