"""The library of the card that answers by shapes alone belongs to one installation of PyTorch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))

import shapes_only


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Returns what is used for a PyTorch of a release in a folder, and counts what is compiled."""
    compiled = []

    def compile_nothing(command, check):
        compiled.append(command)
        Path(command[command.index("-o") + 1]).touch()

    monkeypatch.setattr(subprocess, "run", compile_nothing)

    def of(where, release, build="None"):
        torch = tmp_path / where / "torch"
        torch.mkdir(parents=True, exist_ok=True)
        (torch / "version.py").write_text(f"__version__ = '{release}'\ncuda: Optional[str] = {build}\n")
        found = SimpleNamespace(origin=str(torch / "__init__.py"))
        with monkeypatch.context() as replaced:
            replaced.setattr(importlib.util, "find_spec", lambda name: found)
            return shapes_only._library(tmp_path / "kept"), len(compiled)

    return of


def test_it_is_compiled_once_and_anew_for_another_release_or_another_place(library):
    first, count = library("one", "2.13.0")
    assert first.exists()
    assert count == 1
    assert library("one", "2.13.0") == (first, 1)
    elsewhere, count = library("two", "2.13.0")  # the first may be removed, and its rpath leads nowhere then
    assert (elsewhere == first, count) == (False, 2)
    newer, count = library("one", "2.13.1")
    assert (newer in (first, elsewhere), count) == (False, 3)


def test_a_build_with_kernels_for_a_card_is_refused(library):
    with pytest.raises(RuntimeError, match="This needs a CPU build of PyTorch; the one in .*one/torch has kernels"):
        library("one", "2.13.0", "'12.8'")
