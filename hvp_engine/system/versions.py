"""Versions of what a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform

__all__ = ["version_of", "versions"]


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Return the versions of the package, torch, numpy and Python, by name."""
    return {
        "hvp_engine": version_of("hvp-engine"),
        "torch": version_of("torch"),
        "numpy": version_of("numpy"),
        "python": platform.python_version(),
    }
