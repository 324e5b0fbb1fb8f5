"""Shakespeare's plays and poems: which files, and who says what in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.packages import PACKAGES
from hvp_engine.experiments.data.source import Source, digest, from_path, given

LATIN = "latin-1"

_PACKAGE = PACKAGES["shakespeare"]
_PATTERN = "**/*_gut.txt"  # *_gut_f.txt are the same plays in the spelling of the folio
_MEANING = "a text file, or the unpacked package shakespeare with its files *_gut.txt"
_SPEAKER = re.compile(r"[A-Z][A-Za-z .,'&-]{0,38}\.")  # alone on its line; those of the list of persons are longer
_DIRECTION = re.compile(r"\[[^\]]*\]")  # "[Exeunt.]"


class Speech(NamedTuple):
    """What somebody says until somebody else does.

    Attributes:
        speaker: Play and name.
        text: In one line.
    """

    speaker: str
    text: str


def play_files(name: str, data: Mapping[str, Path] | None) -> tuple[list[Path], Source]:
    """Find the plays and poems, in the order of their names: the package's, or those of ``--data shakespeare=PATH``.

    Args:
        name: Of the data set that is made of them.
        data: The user's paths by name.

    Raises:
        ConfigurationError: The package is not installed, or the path has no texts.
    """
    path = given("shakespeare", data, _MEANING)
    folder = _PACKAGE.folder() if path is None else path
    files = [folder] if folder.is_file() else sorted(folder.glob(_PATTERN))
    if not files:
        raise ConfigurationError(f"There are no texts *_gut.txt in {folder}; give the path of {_MEANING}.")
    return files, _PACKAGE.source(name, files) if path is None else from_path(name, path, digest(files))


def play_speeches(file: Path) -> list[Speech]:
    """Read the speeches of a play in their order; stage directions are left out. Poems have none.

    A speech is a paragraph whose first line is the speaker's name and a full stop.
    """
    speeches = []
    for paragraph in _DIRECTION.sub("", file.read_text(encoding=LATIN)).split("\n\n"):
        first, *lines = paragraph.strip("\n").split("\n")
        words = " ".join(" ".join(lines).split())
        if words and _SPEAKER.fullmatch(first.strip()) and not first.startswith(("SCENE", "ACT", "PERSONS")):
            speeches.append(Speech(f"{file.stem}: {first.strip().removesuffix('.')}", words))
    return speeches
