"""Collecting, saving and loading a mapping of spectra."""

import errno
import json
import math
import os

import pytest
from random_spectra import random_spectra

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.spectra import Spectra

ARRAYS = ("alphas", "betas", "nodes", "weights", "steps")


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
    with pytest.raises(ConfigurationError, match="Two spectra have the name"):
        Spectra([block, block])
