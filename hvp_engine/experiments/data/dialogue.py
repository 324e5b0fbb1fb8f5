"""Conversations as sequences of turns: Shakespeare's plays, or the Cornell Movie-Dialogs of the paper."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.data.corpus import HELD_OUT_EVERY
from hvp_engine.experiments.data.plays import Speech, play_files, play_speeches
from hvp_engine.experiments.data.source import Source, digest, from_path, given

_SEPARATOR = " +++$+++ "
_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_LINES, _CONVERSATIONS = "movie_lines.txt", "movie_conversations.txt"


@dataclass(frozen=True)
class Conversations:
    """Conversations in two parts.

    Attributes:
        train: Turns of each conversation, to train on.
        held_out: Those of other conversations.
        source: Where they come from.
    """

    train: tuple[tuple[str, ...], ...]
    held_out: tuple[tuple[str, ...], ...]
    source: Source


class SentencePair(NamedTuple):
    """Two turns for next-sentence prediction.

    Attributes:
        first: A turn.
        second: Its reply, or a turn from anywhere.
        follows: Whether it is the reply.
    """

    first: str
    second: str
    follows: bool


def conversations(data: Mapping[str, Path] | None = None) -> Conversations:
    """Read ``--data cornell=DIR`` where it is given, otherwise the plays; every tenth play or conversation is held out.

    Raises:
        ConfigurationError: Neither is there, or the files are malformed.
    """
    folder = given("cornell", data, f"a folder with {_LINES} and {_CONVERSATIONS}")
    if folder is None:
        files, source = play_files("dialogue", data)
        spoken = [tuple(speech.text for speech in play_speeches(file)) for file in files]
    else:
        spoken = _cornell(folder)
        source = from_path("cornell", folder, digest([folder / _LINES, folder / _CONVERSATIONS]))
    train = tuple(turns for i, turns in enumerate(spoken) if i % HELD_OUT_EVERY)
    return Conversations(train, tuple(turns for i, turns in enumerate(spoken) if i % HELD_OUT_EVERY == 0), source)


def speeches(data: Mapping[str, Path] | None = None) -> list[Speech]:
    """Read what is said in the plays, with the speakers.

    Raises:
        ConfigurationError: The plays are not there.
    """
    files, _ = play_files("dialogue", data)
    return [speech for file in files for speech in play_speeches(file)]


def sentence_pairs(spoken: Sequence[Sequence[str]], seed: int) -> Iterator[SentencePair]:
    """Draw pairs of turns without end: as often a turn with its reply as a turn with one from anywhere.

    Raises:
        ConfigurationError: No conversation has two turns.
    """
    turns = [(number, place) for number, one in enumerate(spoken) for place in range(len(one) - 1)]
    if not turns:
        raise ConfigurationError("No conversation has two turns, so there are no pairs; give longer ones.")
    chance = random.Random(seed)
    while True:
        number, place = chance.choice(turns)
        follows = chance.random() < 0.5
        other, there = (number, place) if follows else chance.choice(turns)
        yield SentencePair(spoken[number][place], spoken[other][there + 1], follows)


def wordpiece(texts: Sequence[str], vocabulary: int = 30_000) -> Any:
    """Train the tokenizer of BERT on texts.

    Args:
        texts: What to learn from.
        vocabulary: How many tokens it may have.

    Returns:
        A ``transformers.PreTrainedTokenizerFast`` for lower-case text, without a template for pairs.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # noqa: PLC0415  # of an extra
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    trained = Tokenizer(models.WordPiece(unk_token=_SPECIAL["unk_token"]))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, min_frequency=2, show_progress=False, special_tokens=list(_SPECIAL.values())
    )
    trained.train_from_iterator(texts, trainer)
    make: Callable[..., Any] = PreTrainedTokenizerFast
    return make(tokenizer_object=trained, **_SPECIAL)


def _cornell(folder: Path) -> list[tuple[str, ...]]:
    """Return the turns of each conversation, in the order of the file."""
    lines: dict[str, str] = {}
    for fields in _fields(folder / _LINES, 5):
        lines[fields[0]] = fields[4].strip()
    found = []
    for fields in _fields(folder / _CONVERSATIONS, 4):
        numbers = ast.literal_eval(fields[3])
        found.append(tuple(lines[number] for number in numbers if lines.get(number)))
    return found


def _fields(file: Path, count: int) -> Iterator[list[str]]:
    if not file.exists():
        raise ConfigurationError(
            f"There is no {file.name} in {file.parent}; give the folder that the archive unpacks to."
        )
    for number, line in enumerate(file.read_text(encoding="latin-1").split("\n"), start=1):
        fields = line.split(_SEPARATOR)
        if len(fields) == count:
            yield fields
        elif line.strip():
            raise ConfigurationError(
                f"Line {number} of {file} has {len(fields)} fields and not {count}; give the file as it is distributed."
            )
