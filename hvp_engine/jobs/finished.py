"""Finished runs of ``slq`` as calls take them: folders, or what ``slq`` returned."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.spectra import Spectra
from hvp_engine.system.run_files import read_manifest

Run = str | PathLike[str] | Spectra


class Finished(NamedTuple):
    """A run.

    Attributes:
        label: How messages and tables call it.
        spectra: What it found.
    """

    label: str
    spectra: Spectra

    @property
    def identity(self) -> Mapping[str, Any]:
        """Its job; empty where it does not say which."""
        identity = self.spectra.manifest.get("identity")
        return identity if isinstance(identity, Mapping) else {}


def finished(run: Run, label: str) -> Finished:
    """Read a run.

    Args:
        run: Its folder, or what it returned.
        label: How to call it where it has no folder.

    Raises:
        ConfigurationError: It is of another kind of job, or something else.
        RunFolderError: It is not finished, or cannot be read.
    """
    if isinstance(run, Spectra):
        return Finished(label, run)
    if not isinstance(run, (str, PathLike)):
        raise ConfigurationError(f"{label} is of type {type(run).__name__}; give a run folder, or what slq returned.")
    facts = read_manifest(run).get("run")
    config = facts.get("config") if isinstance(facts, Mapping) else None
    job = config.get("job") if isinstance(config, Mapping) else None
    if job is not None:
        raise ConfigurationError(f"{os.fspath(run)} is of a job {job!r}; only runs of slq can be taken here.")
    return Finished(os.fspath(run), Spectra.load(run))
