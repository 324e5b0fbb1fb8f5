"""Damage of every kind to run folders: an error of ours in one line, or the right numbers bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting import count
from problems import mlp

import hvp_engine as he
from hvp_engine.errors import RunFolderError
from hvp_engine.jobs.checkpoint import Checkpoint
from hvp_engine.jobs.folder import FOLDER
from hvp_engine.krylov.lanczos import BatchedLanczos
from hvp_engine.system import json_files

TRIES = 250
ARRAYS = ("alphas", "betas", "nodes", "weights", "steps", "residuals", "singles")
STRANGE: list[Any] = [None, True, -1, 0, 1, 2.5, 1e308, 10**30, 1 << 62, "", "a", "\x1b[31m", [], [[]], {}, {"a": 1}]
CONTENTS = [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 99_999, b'{"format": "hvp_engine run"}', b"\0" * 4096]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: nothing here depends on its order."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def small_files(folder: Path) -> list[Path]:
    """What is in a folder and its folders, but for what was made empty or huge by an earlier damage."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if 0 < path.stat().st_size < 1 << 20]


def flip(chance: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def overwrite(chance: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    start, length = chance.randrange(len(data)), chance.randrange(1, 64)
    data[start : start + length] = chance.choice([bytes(length), chance.randbytes(length), b"9" * length, b""])
    path.write_bytes(data)


def truncate(chance: random.Random, path: Path) -> None:
    os.truncate(path, chance.choice([chance.randrange(path.stat().st_size), path.stat().st_size + 8, 1 << 36]))


def replace(chance: random.Random, path: Path) -> None:
    path.unlink()
    match chance.randrange(4):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to(chance.choice(["missing", path.name, "/dev/zero", ".."]))
        case 3:
            path.write_bytes(chance.choice(CONTENTS))


def swap(chance: random.Random, path: Path) -> None:
    other = chance.choice(small_files(path.parent))
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def delete(_: random.Random, path: Path) -> None:
    path.unlink()


def edit(chance: random.Random, path: Path) -> None:
    """Change a value of a JSON file, with a checksum that fits or without."""
    try:
        inner = document = json.loads(path.read_text())
    except (ValueError, RecursionError):  # no JSON, or no longer
        flip(chance, path)
        return
    while inner:
        key = chance.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if not (isinstance(inner[key], dict | list) and inner[key] and chance.random() < 0.8):
            break
        inner = inner[key]
    if inner:
        inner[key] = chance.choice(STRANGE)
    fits = chance.random() < 0.5 and "checksum" in document
    path.write_text(json.dumps(json_files.sealed(document) if fits else document))


DAMAGES: list[Callable[[random.Random, Path], None]] = [flip, overwrite, truncate, replace, swap, delete, edit]


def damaged_copies(whole: Path, copy: Path, tries: int) -> Any:
    """Copy a folder again and again, with one to three damages each."""
    for seed in range(tries):
        chance = random.Random(seed)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        for _ in range(chance.choice([1, 1, 2, 3])):
            if paths := small_files(copy):
                chance.choice(DAMAGES)(chance, chance.choice(paths))
        yield seed


def refused(error: RunFolderError) -> bool:
    return len(str(error).splitlines()) == 1 and str(error).isprintable()


def bits(spectra: he.Spectra) -> dict[str, list[bytes]]:
    return {name: [getattr(spectrum, key).tobytes() for key in ARRAYS] for name, spectrum in spectra.items()}


def test_a_damaged_run_is_refused_or_right(tmp_path: Path) -> None:
    case = mlp()

    def job(out: Path) -> he.Spectra:
        return he.slq(case.model, case.loss, data=case.data, steps=4, probes=2, check=False, out=out)

    wanted, right = bits(job(tmp_path / "whole")), 0
    for seed in damaged_copies(tmp_path / "whole", tmp_path / "run", TRIES):
        # Every few times through a job, which returns what is there, or computes it where nothing of it is.
        for read in (he.Spectra.load, job) if seed % 4 == 0 else (he.Spectra.load,):
            try:
                assert bits(read(tmp_path / "run")) == wanted, seed
                right += 1
            except RunFolderError as error:
                assert refused(error), seed
    assert 0 < right < TRIES / 2


def stopped(out: Path) -> None:
    """Leave a folder of a job killed in its second wave: nothing is tidied up."""
    restore = Checkpoint.restore

    def killed(self: Checkpoint, wave: int, streams: Any) -> None:
        if wave == 1:
            step = streams.step
            streams.step = lambda: step() if streams.position < 2 else (_ for _ in ()).throw(KeyboardInterrupt)
        restore(self, wave, streams)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "restore", killed)
        count(out)


def test_a_damaged_checkpoint_is_refused_or_resumed_to_the_same_bits(tmp_path: Path) -> None:
    wanted, steps = count(tmp_path / "other")
    stopped(tmp_path / "whole")
    assert count(shutil.copytree(tmp_path / "whole", tmp_path / "unharmed")) == (wanted, 2)
    right = resumed = 0
    for seed in damaged_copies(tmp_path / "whole", tmp_path / "run", TRIES):
        try:
            found, taken = count(tmp_path / "run")
        except RunFolderError as error:
            assert refused(error), seed
            continue
        assert found == wanted, seed
        right += 1
        resumed += taken < steps
    assert resumed <= right < TRIES / 2


def test_a_damaged_checkpoint_of_a_real_job_is_refused_or_resumed_to_the_same_bits(tmp_path: Path) -> None:
    case = mlp()

    def job(out: Path | None) -> dict[str, list[bytes]]:
        return bits(he.slq(case.model, case.loss, data=case.data, steps=5, probes=2, check=False, out=out))

    wanted, step = job(None), BatchedLanczos.step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            BatchedLanczos, "step", lambda s: step(s) if s.position < 3 else (_ for _ in ()).throw(KeyboardInterrupt)
        )
        job(tmp_path / "whole")
    assert len(list((tmp_path / "whole" / FOLDER).glob("wave-000-*"))) == 2
    for seed in damaged_copies(tmp_path / "whole", tmp_path / "run", 40):
        try:
            assert job(tmp_path / "run") == wanted, seed
        except RunFolderError as error:
            assert refused(error), seed
