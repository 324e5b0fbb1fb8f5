"""Versions of what a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import numpy as np
import torch

__all__ = ["package_version", "version_of", "version_of_module", "versions"]


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_of_module(package: str) -> str | None:
    """Return what an imported package says of its version, or else its distribution of the same name; None if neither.

    Args:
        package: As it is imported.
    """
    said = getattr(sys.modules.get(package), "__version__", None)
    return str(said) if isinstance(said, str) else version_of(package)


def package_version() -> str:
    """Return the version of this package, or "unknown" where it runs from a source tree that is not installed."""
    return version_of("hvp-engine") or "unknown"


def versions() -> dict[str, str]:
    """Return the versions of the package, torch, numpy and Python, by name.

    Those of torch and numpy are what the modules say themselves: a build of one's own need not be a distribution.
    """
    return {
        "hvp_engine": package_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
