"""The folder of a training's measurements: one run folder per step, and what an abandoned course of it has left."""

from __future__ import annotations

import re
from pathlib import Path

from hvp_engine.system import files

REPLACED = ".replaced"  # hidden, so that a shell's RUN/* means the steps alone

_STEP = re.compile(r"step-(\d{6,})")


def step_folder(out: Path, step: int) -> Path:
    """Return the run folder of a step."""
    return out / f"step-{step:06d}"


def set_aside(out: Path, step: int) -> Path:
    """Move a step and all later ones out of the way: the training took another course; return where they are now.

    Raises:
        RunFolderError: They cannot be moved.
    """
    with files.explained(out):
        numbered = [(path, _STEP.fullmatch(path.name)) for path in out.iterdir()]
        later = [path for path, found in numbered if found is not None and int(found[1]) >= step]
        parent = out / REPLACED
        parent.mkdir(exist_ok=True)
        number = 1 + max((int(path.name) for path in parent.iterdir() if path.name.isdecimal()), default=0)
        target = parent / str(number)
        target.mkdir()
        for path in later:
            path.rename(target / path.name)
    return target
