"""Texts by name, as characters, bytes or the papers' tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.classification import news_files
from hvp_engine.experiments.data.corpus import Corpus, byte_ids, split_files, standard_library
from hvp_engine.experiments.data.dialogue import conversations
from hvp_engine.experiments.data.plays import LATIN, play_files
from hvp_engine.experiments.data.source import Source, from_path, required, sizes_digest

GPT2_VOCABULARY = 50_304  # GPT-2's 50,257 tokens, rounded up to a multiple of 64 as nanoGPT does
_HELD_OUT_SHARE = 0.1  # of a single file, from its end, as nanoGPT does

Parts = tuple[bytes, bytes, Source]


def characters(name: str, data: Mapping[str, Path] | None = None) -> Corpus:
    """Read a text as its characters.

    Args:
        name: ``"shakespeare"``, the plays and poems as they are printed; ``"dialogue"``, the same plays as turns, one a
            line, or the Cornell Movie-Dialogs where ``data`` has ``"cornell"``.
        data: The user's paths by name.

    Returns:
        Ids of characters, in the order of their codes.

    Raises:
        ConfigurationError: There is no such text, or its package or path is missing.
    """
    readers = {"shakespeare": _shakespeare, "dialogue": _dialogue}
    train, held_out, source = _named(readers, name)(data)
    codes = sorted(set(train) | set(held_out))
    ids = torch.zeros(256, dtype=torch.uint8)
    ids[codes] = torch.arange(len(codes), dtype=torch.uint8)
    parts = [ids[byte_ids(text).long()] for text in (train, held_out)]
    return Corpus(parts[0], parts[1], source, len(codes), bytes(codes).decode(LATIN))


def byte_text(name: str, data: Mapping[str, Path] | None = None) -> Corpus:
    """Read a text as its bytes, 256 ids.

    Args:
        name: ``"shakespeare"``, ``"bbcnews"`` or ``"stdlib"``.
        data: The user's paths by name.

    Raises:
        ConfigurationError: There is no such text, or its package or path is missing.
    """
    if name == "stdlib":
        return standard_library()
    train, held_out, source = _named({"shakespeare": _shakespeare, "bbcnews": _news}, name)(data)
    return Corpus(byte_ids(train), byte_ids(held_out), source)


def openwebtext(data: Mapping[str, Path] | None) -> Corpus:
    """Open ``--data openwebtext=train.bin``, nanoGPT's file of GPT-2's tokens (uint16), without reading it.

    Its ``val.bin``, in the same folder, is held out; without one the last tenth of the tokens is.

    Raises:
        ConfigurationError: The path is missing, or is no such file.
    """
    file = required("openwebtext", data, "train.bin, nanoGPT's file of GPT-2's tokens")
    if file.is_dir() or file.stat().st_size % 2:
        raise ConfigurationError(f"{file} is no file of 16-bit tokens; give train.bin as nanoGPT prepares it.")
    beside = file.with_name("val.bin")
    tokens = _mapped(file)
    if beside.exists() and beside != file:
        return Corpus(tokens, _mapped(beside), _openwebtext_source(file, beside), GPT2_VOCABULARY)
    border = round((1 - _HELD_OUT_SHARE) * len(tokens))
    return Corpus(tokens[:border], tokens[border:], _openwebtext_source(file), GPT2_VOCABULARY)


def tokenized(texts: Sequence[str], tokenizer: Any, source: Source) -> Corpus:
    """Tokenize texts and join them; every tenth one is held out.

    Args:
        texts: The texts.
        tokenizer: Of transformers.
        source: Where the texts come from.
    """
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    parts: list[list[int]] = [[], []]
    for i, row in enumerate(rows):
        parts[i % 10 == 0].extend(row)
    train, held_out = (torch.tensor(part, dtype=torch.int32) for part in parts)
    return Corpus(train, held_out, source, len(tokenizer))


def _shakespeare(data: Mapping[str, Path] | None) -> Parts:
    files, source = play_files("shakespeare", data)
    if len(files) == 1:
        text = files[0].read_bytes()
        border = round((1 - _HELD_OUT_SHARE) * len(text))
        return text[:border], text[border:], source
    return *_joined(files), source


def _dialogue(data: Mapping[str, Path] | None) -> Parts:
    spoken = conversations(data)
    train, held_out = (
        "\n".join(turn for turns in part for turn in turns).encode(LATIN, "replace")
        for part in (spoken.train, spoken.held_out)
    )
    return train, held_out, spoken.source


def _news(data: Mapping[str, Path] | None) -> Parts:
    files, source = news_files(data)
    return *_joined([file for file, _ in files]), source


def _joined(files: Sequence[Path]) -> tuple[bytes, bytes]:
    train, held_out = (b"".join(file.read_bytes() for file in part) for part in split_files(files))
    return train, held_out


def _named(readers: Mapping[str, Callable[..., Parts]], name: str) -> Callable[..., Parts]:
    if name not in readers:
        raise ConfigurationError(f"There is no such text as {name!r}; choose one of {', '.join(readers)}.")
    return readers[name]


def _mapped(file: Path) -> Tensor:
    return torch.from_numpy(np.memmap(file, dtype=np.uint16, mode="c"))  # a private copy, so that torch may have it


def _openwebtext_source(*files: Path) -> Source:
    return from_path("openwebtext", files[0], sizes_digest(files))
