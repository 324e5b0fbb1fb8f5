"""The papers' tasks of GLUE and SuperGLUE, from the user's files: as distributed, or as ``datasets`` saves them."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.classification import TextSamples, TextSet
from hvp_engine.experiments.data.source import digest, from_path, required

Row = Mapping[str, Any]

_TRAIN_SHARE = 0.9  # of the training file, from its beginning: the paper's code keeps the rest to select epochs
_FALSE_TRUE = ("False", "True")
_ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Task:
    """How a task stands in its files.

    Attributes:
        first: Makes the text, or the first of two, of a row.
        second: Field of the second text; None where there is one text.
        classes: Labels in words, in the order of their numbers.
        label: Field of the label.
        files: Names of the training file and of the one that stands for the test.
        columns: Of a table without a line of titles; empty where it has one.
    """

    first: Callable[[Row], str]
    second: str | None
    classes: tuple[str, ...]
    label: str = "label"
    files: tuple[tuple[str, ...], tuple[str, ...]] = (("train.jsonl", "train.tsv"), ("val.jsonl", "dev.tsv"))
    columns: tuple[str, ...] = ()


def _field(*names: str) -> Callable[[Row], str]:
    """Make a reader of the first of some fields that a row has."""

    def read(row: Row) -> str:
        return str(next(row[name] for name in names if name in row))

    return read


def _same_word(row: Row) -> str:
    """Ask the question of words in context, as the paper's code does for RoBERTa."""
    return f"{row['sentence1']} {row['sentence2']} Does {row['word']} have the same meaning in both sentences?"


_MRPC_FILES = (("train.tsv", "msr_paraphrase_train.txt"), ("dev.tsv", "msr_paraphrase_test.txt"))
TASKS: Mapping[str, Task] = {
    "boolq": Task(_field("question"), "passage", _FALSE_TRUE),
    "cb": Task(_field("premise"), "hypothesis", ("entailment", "contradiction", "neutral")),
    "rte": Task(_field("premise", "sentence1"), "hypothesis", _ENTAILMENT),
    "wic": Task(_same_word, None, _FALSE_TRUE),
    "cola": Task(
        _field("sentence"), None, ("unacceptable", "acceptable"), columns=("source", "label", "star", "sentence")
    ),
    "sst2": Task(_field("sentence"), None, ("negative", "positive")),
    "mrpc": Task(
        _field("#1 String", "sentence1"), "#2 String", ("not_equivalent", "equivalent"), "Quality", _MRPC_FILES
    ),
}
_OTHER_NAMES = {"hypothesis": "sentence2", "#2 String": "sentence2", "Quality": "label"}  # GLUE's own, or of `datasets`


def glue(name: str, data: Mapping[str, Path] | None) -> TextSet:
    """Read ``--data NAME=DIR`` of one of :data:`TASKS`.

    Training texts are the first nine tenths of the training file; the validation file stands for the test, whose
    labels are not public.

    Args:
        name: Of the task.
        data: Paths by name.

    Raises:
        ConfigurationError: There is no such task, or its files are missing or malformed.
    """
    if name not in TASKS:
        raise ConfigurationError(f"There is no task {name!r}; choose one of {', '.join(TASKS)}.")
    folder = required(name, data, "a folder written by datasets' save_to_disk, or with the task's jsonl or tsv files")
    task = TASKS[name]
    if (folder / "dataset_dict.json").exists():
        saved = _saved(folder)
        rows, files = [list(saved[part]) for part in ("train", "validation")], sorted(folder.rglob("*.arrow"))
    else:
        files = [_find(folder, names) for names in task.files]
        rows = [_rows(file, task.columns) for file in files]
    train = rows[0][: round(_TRAIN_SHARE * len(rows[0]))]
    try:
        parts = [_samples(part, task) for part in (train, rows[1])]
    except (KeyError, StopIteration, ValueError) as error:
        raise ConfigurationError(
            f"A row in {folder} has not the fields of {name} ({error!r}); give the task's files as distributed."
        ) from error
    return TextSet(parts[0], parts[1], task.classes, from_path(name, folder, digest(files)))


def _saved(folder: Path) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigurationError(
            f"{folder} was written by the package datasets, which is not installed; pip install datasets."
        ) from error
    return datasets.load_from_disk(str(folder))


def _find(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ConfigurationError(
        f"There is no {' and no '.join(names)} in {folder}; give the folder that the archive unpacks to."
    )


def _rows(file: Path, columns: tuple[str, ...]) -> list[Row]:
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in lines if line]
    return list(csv.DictReader(lines, columns or None, delimiter="\t", quoting=csv.QUOTE_NONE))


def _samples(rows: Iterable[Row], task: Task) -> TextSamples:
    kept = list(rows)
    labels = torch.tensor([_label(_of(row, task.label), task.classes) for row in kept])
    seconds = tuple(str(_of(row, task.second)) for row in kept) if task.second is not None else ()
    return TextSamples(tuple(task.first(row) for row in kept), labels, seconds)


def _of(row: Row, name: str) -> Any:
    return row[name] if name in row else row[_OTHER_NAMES[name]]


def _label(value: object, classes: tuple[str, ...]) -> int:
    """Return a label's number; files have it as a number, as a truth value, or in words."""
    if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
        return int(value)
    return classes.index(str(value))
