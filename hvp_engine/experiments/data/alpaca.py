"""Alpaca's instructions, from the user's file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.source import Source, digest, from_path, required


@dataclass(frozen=True)
class Instructions:
    """Instructions with their answers.

    Attributes:
        texts: One text each.
        source: Where they come from.
    """

    texts: tuple[str, ...]
    source: Source


def instructions(data: Mapping[str, Path] | None) -> Instructions:
    """Read ``--data alpaca=alpaca_data.json``, a list of objects with ``instruction``, ``input`` and ``output``.

    Raises:
        ConfigurationError: The file is missing, or is no such list.
    """
    file = required("alpaca", data, "alpaca_data.json")
    try:
        texts = tuple(_text(entry) for entry in json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{file} is no list of objects with instruction, input and output ({error!r}); give alpaca_data.json."
        ) from error
    return Instructions(texts, from_path("alpaca", file, digest([file])))


def _text(entry: Mapping[str, str]) -> str:
    given = f"### Input:\n{entry['input']}\n\n" if entry.get("input") else ""
    return f"### Instruction:\n{entry['instruction']}\n\n{given}### Response:\n{entry['output']}\n"
