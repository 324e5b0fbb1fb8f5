"""Collecting, saving and loading a mapping of spectra."""

import errno
import hashlib
import json
import math
import os

import numpy as np
import pytest
import torch
from random_spectra import random_spectra
from safetensors.torch import save_file

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.results.spectra import Spectra
from hvp_engine.system import json_files, run_files
from hvp_engine.system.tensor_files import read_tensors

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
    added = {"singles": 0, "deflated": 0, "noise": 0.0, "reorthogonalized": True}
    assert manifest["blocks"][1] == {"name": "layer.1/weight", "numel": 2000, "probes": 3, "m": 5, **added}
    assert manifest["format_version"] == 3
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
    else:
        forge(folder, what)


def forge(folder, what):
    """Change a run and give it checksums that fit, as somebody would who means to."""
    document = run_files.read_manifest(folder)
    tensors = read_tensors(folder / "spectra.safetensors").tensors
    if what == "foreign blocks":
        document["blocks"] = {"layer.0/weight": 1}
    elif what == "other sizes":
        document["blocks"][0]["m"] = 1 << 40
    elif what == "other nodes":
        tensors["layer.0/weight/nodes"][0, 1] += 1e-6
    elif what == "other weights":
        tensors["layer.0/weight/weights"][0, :2] += torch.tensor([1e-4, -1e-4])
    run_files.write_run(folder, document, tensors)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("foreign", "not written by hvp_engine"),
        ("newer", "format version 99.*upgrade"),
        ("not json", "not JSON"),
        ("no blocks", "manifest.json is damaged, its checksum"),
        ("foreign blocks", "manifest.json is damaged, its facts or its blocks are missing"),
        ("other sizes", "names and shapes"),
        ("other nodes", "nodes and weights of block 'layer.0/weight' are not those of its alphas"),
        ("other weights", "nodes and weights of block 'layer.0/weight' are not those of its alphas"),
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


def test_a_forged_manifest_is_told_from_an_unchanged_one(tmp_path):
    spectra = random_spectra()
    spectra.save(tmp_path)
    forge(tmp_path, "nothing")
    assert Spectra.load(tmp_path).manifest == spectra.manifest


@pytest.mark.parametrize(("key", "value"), [("seed", 4), ("precision", "fp32"), ("more", True)])
def test_an_edited_manifest_is_refused(tmp_path, key, value):
    random_spectra().save(tmp_path)
    document = json.loads((tmp_path / "manifest.json").read_text())
    document["run"]["config"][key] = value
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(RunFolderError, match=r"manifest\.json is damaged, its checksum does not fit"):
        Spectra.load(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"format_version": 1}, {"format_version": True}, {"format_version": "2"}])
def test_a_manifest_without_its_checksum_is_refused(tmp_path, changes):
    random_spectra().save(tmp_path)
    document = json.loads((tmp_path / "manifest.json").read_text())
    del document["checksum"]
    (tmp_path / "manifest.json").write_text(json.dumps({**document, **changes}))
    with pytest.raises(RunFolderError, match="checksum is missing|do not have the names and shapes"):
        Spectra.load(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_runs_of_earlier_versions_are_read_their_residuals_unknown(tmp_path, version):
    spectra = random_spectra()
    tensors = {f"{name}/{key}": torch.tensor(getattr(s, key)) for name, s in spectra.items() for key in ARRAYS}
    path = tmp_path / "spectra.safetensors"
    save_file(tensors, path, {"format": f"hvp_engine run, version {version}"})
    blocks = [{"name": name, "numel": s.numel, "probes": 3, "m": 5} for name, s in spectra.items()]
    header = {"format": "hvp_engine run", "format_version": version}
    checksums = {"spectra.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}
    document = {"run": spectra.manifest, "blocks": blocks, **header, "sha256": checksums}
    content = document if version == 1 else json_files.sealed(document)
    (tmp_path / "manifest.json").write_text(json.dumps(content, indent=2, ensure_ascii=False))
    loaded = Spectra.load(tmp_path)
    assert loaded.manifest == spectra.manifest
    assert all(loaded[name].nodes.tobytes() == spectra[name].nodes.tobytes() for name in spectra)
    assert all(np.isnan(loaded[name].residuals).all() and not loaded[name].singles.size for name in spectra)


@pytest.mark.parametrize("name", ["manifest.json", "spectra.safetensors"])
@pytest.mark.parametrize("content", ["", '{"epochs": 3}', None])
def test_what_somebody_else_wrote_is_not_overwritten(tmp_path, name, content):
    if content is None:
        (tmp_path / name).symlink_to("nowhere")
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(RunFolderError, match=f"{name} is there already and was not written by hvp_engine"):
        random_spectra().save(tmp_path)
    assert os.listdir(tmp_path) == [name]
    assert content is None or (tmp_path / name).read_text() == content


def test_spectra_in_a_folder_that_claims_more_than_it_has_are_refused_before_they_are_read(tmp_path, monkeypatch):
    random_spectra().save(tmp_path)
    document = run_files.read_manifest(tmp_path)
    document["blocks"] = [{**document["blocks"][0], "name": "a", "numel": 1 << 40, "probes": 1 << 10, "m": 1 << 20}]
    del document["format"], document["format_version"]
    run_files.write_run(tmp_path, document, {"a/alphas": torch.zeros(1)})
    path = tmp_path / "spectra.safetensors"
    shapes = {key: [1 << 10, 1 << 20] for key in ("alphas", "nodes", "weights")}
    shapes |= {"betas": [1 << 10, (1 << 20) - 1], "steps": [1 << 10], "residuals": [1 << 10], "singles": [0, 3]}
    header, end = {"__metadata__": {"format": "hvp_engine run, version 3"}}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 8 * math.prod(shape)
        kind = "I64" if key == "steps" else "F64"
        header[f"a/{key}"] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)  # 32 GB that take no room on the disk
    monkeypatch.setattr("hvp_engine.system.tensor_files.budget", lambda device: 8 << 30)
    with pytest.raises(RunFolderError, match="more than the memory that is free"):
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
