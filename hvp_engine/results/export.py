"""Results in files for other programs: CSV, JSON and NumPy's npz, with the columns that docs/run_folder.md lists."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.tabular import Row, Tabular, columns
from hvp_engine.system.files import write_atomic

Record = Mapping[str, Any]


def export(result: Tabular, record: Record, path: Path, form: str) -> list[Path]:
    """Write a result.

    Args:
        result: What to write.
        record: Its plain data.
        path: Where; further tables of CSV go beside it, with their names behind its own.
        form: One of ``FORMATS``.

    Returns:
        The files that were written.

    Raises:
        ConfigurationError: There is no such format.
        RunFolderError: A file cannot be written; earlier ones are then intact.
    """
    if form not in FORMATS:
        raise ConfigurationError(f"format={form!r} is not one of {', '.join(map(repr, FORMATS))}.")
    contents = FORMATS[form](result, record, path)
    write_atomic({file: [content] for file, content in contents.items()})
    return list(contents)


def _csv(result: Tabular, record: Record, path: Path) -> dict[Path, bytes]:
    further = {path.with_name(f"{path.stem}-{name}{path.suffix}"): rows for name, rows in result.further_rows().items()}
    return {file: _table(rows) for file, rows in {path: result.rows(), **further}.items()}


def _table(rows: Sequence[Row]) -> bytes:
    """Write rows below the names of their columns; what is not there is empty, numbers have all of their digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _json(result: Tabular, record: Record, path: Path) -> dict[Path, bytes]:
    arrays = {name: array.tolist() for name, array in result.arrays().items()}
    return {path: f"{json_text({**record, 'arrays': arrays})}\n".encode()}


def _npz(result: Tabular, record: Record, path: Path) -> dict[Path, bytes]:
    content = io.BytesIO()
    arrays: dict[str, Any] = {**columns(result.rows()), **result.arrays()}
    np.savez_compressed(content, **arrays)
    return {path: content.getvalue()}


FORMATS: Mapping[str, Callable[[Tabular, Record, Path], dict[Path, bytes]]] = {
    "csv": _csv,
    "json": _json,
    "npz": _npz,
}


def json_text(data: Any, indent: int | None = None) -> str:
    """Write plain data as strict JSON: numbers that are not finite are null.

    Args:
        data: What to write.
        indent: Spaces of a level; None writes one line.
    """
    return json.dumps(_finite(data), indent=indent, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
