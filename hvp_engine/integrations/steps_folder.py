"""The folder of a training's measurements: one run folder per step, and what an abandoned course of it has left."""

from __future__ import annotations

import os
import re
from pathlib import Path

from hvp_engine.system import files

REPLACED = ".replaced"  # hidden, so that a shell's RUN/* means the steps alone

_STEP = re.compile(r"step-(\d{6,})")


class StepsFolder:
    """The run folders of one training, in a folder where another course of it may have left some.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        """Take the folder, which need not be there yet."""
        self.path = path
        self._open = 0  # from this step on nothing has shown yet whose the run folders are

    def begin(self, step: int) -> None:
        """Follow a training from a step on; what the folder holds of earlier ones is taken for its own."""
        self._open = step

    def of(self, step: int) -> Path:
        """Return the run folder of a step."""
        return self.path / f"step-{step:06d}"

    def has(self, step: int) -> bool:
        """Say whether anything is in the place of a step's run folder."""
        return os.path.lexists(self.of(step))

    def settle(self, step: int) -> None:
        """Take it as shown that what the folder holds up to a step is of this training."""
        self._open = step + 1

    def set_aside(self, but: int | None = None) -> Path | None:
        """Move what nothing has shown to be this training's out of the way; return where it is now.

        Args:
            but: A step that stays.

        Returns:
            The folder; None where there was nothing to move.

        Raises:
            RunFolderError: They cannot be moved.
        """
        with files.explained(self.path):
            numbered = [(path, _STEP.fullmatch(path.name)) for path in self.path.iterdir()]
            steps = {int(found[1]): path for path, found in numbered if found is not None}
            others = [path for step, path in steps.items() if step >= self._open and step != but]
            if not others:
                return None
            parent = self.path / REPLACED
            parent.mkdir(exist_ok=True)
            number = 1 + max((int(path.name) for path in parent.iterdir() if path.name.isdecimal()), default=0)
            target = parent / str(number)
            target.mkdir()
            for path in others:
                path.rename(target / path.name)
        return target
