"""Training curves as files: whole or not there, and not read for another training than their own."""

from __future__ import annotations

import io
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hvp_engine.experiments.training import Curve
from hvp_engine.system.files import write_atomic


def write_curve(path: Path, curve: Curve, identity: str) -> None:
    """Write a curve as ``.npz``; a failure leaves an earlier file as it was.

    Args:
        path: The file; its folder is there.
        curve: The curve.
        identity: What training it is of.

    Raises:
        RunFolderError: The file cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, identity=np.array(identity), **asdict(curve))
    write_atomic({path: [buffer.getvalue()]})


def read_curve(path: Path, identity: str) -> Curve | None:
    """Read a curve; None where there is no whole one of this training, which must then be done again."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if str(file["identity"]) != identity:
                return None
            return Curve(
                file["losses"],
                file["gradient_norms"],
                float(file["held_out"]),
                float(file["accuracy"]),
                float(file["rate"]),
                bool(file["at_edge"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
