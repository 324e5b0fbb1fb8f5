from __future__ import annotations

import importlib.metadata
import platform

import numpy as np
import pytest
import torch

import hvp_engine
from hvp_engine import config as configuration
from hvp_engine.system.versions import package_version, version_of, versions


def test_versions_are_those_of_what_is_imported():
    assert versions() == {
        "hvp_engine": hvp_engine.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    assert version_of("numpy") == np.__version__
    assert version_of("no-such-distribution") is None


def test_versions_are_known_where_nothing_is_installed_as_a_distribution(monkeypatch: pytest.MonkeyPatch):
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    assert versions()["torch"] == torch.__version__
    assert versions()["numpy"] == np.__version__
    assert versions()["hvp_engine"] == package_version() == "unknown"
    assert configuration.config()["versions"]["hvp_engine"] == "unknown"
