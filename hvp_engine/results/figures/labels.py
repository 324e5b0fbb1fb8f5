"""Names of blocks in as little room as a figure has, so that what tells them apart stays."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, combinations, pairwise
from typing import NamedTuple

from rich.cells import cell_len

from hvp_engine.system.formatting import abbreviate

# A part keeps what ends it.
_BETWEEN_DOTS = re.compile(r"[^./]*[./]|[^./]+")
_BETWEEN_UNDERSCORES = re.compile(r"[^._/]*[._/]|[^._/]+")
_ENDS = (".", "/", "_")
_WORD = re.compile(r"[^\W\d_]{8,}")  # long enough to lose its end
_STEM = 5  # characters of a word that stay, or more where words begin alike
_DIGITS = re.compile(r"\d+")
_MOST_FREE = 10  # parts of a name of which every choice is tried
_BEFORE_NUMBER, _LAST = 1.0, 0.3  # what a part is worth that says what a number counts, and the parameter's own name
_NUMBER = 0.5  # and one with a number that is the same in all of its shape
_PRICE = 0.1  # of a run of parts: what nearly all names have is worth no gap


class _Shape(NamedTuple):
    """Names that differ in their numbers only.

    Attributes:
        parts: With ``#`` for every number.
        members: The parts of each name.
        fixed: Places of parts whose numbers differ, which every label has.
    """

    parts: tuple[str, ...]
    members: list[list[str]]
    fixed: frozenset[int]


def labels(names: Sequence[str], characters: int) -> list[str]:
    """Shorten names to ``characters`` columns, different ones to different labels.

    A name that is too long loses whole parts between its dots, for which there is a ``…``. It keeps the numbers in
    which names differ, and parts that few names have rather than those that most have; names that differ in numbers
    only lose the same parts. A label fits no other name than its own. Where this is not possible, parts are what stands
    between underscores too, or else long words lose their ends; failing that, names lose their middle, and those that
    would look alike get their place in the list.

    Args:
        names: One or more.
        characters: Columns of a terminal.
    """
    if max(map(cell_len, names)) <= characters:
        return abbreviate(names, characters)
    found = [""] * len(names)
    for way, pattern in ((list, _BETWEEN_DOTS), (list, _BETWEEN_UNDERSCORES), (_stems, _BETWEEN_DOTS)):
        if not all(found):
            found = [one or other for one, other in zip(found, _by_parts(way(names), characters, pattern), strict=True)]
    return abbreviate([label or name for label, name in zip(found, names, strict=True)], characters)


def _stems(names: Sequence[str]) -> list[str]:
    """Cut the ends of long words, different ones to different stems."""
    words = set(chain.from_iterable(map(_WORD.findall, names)))

    def stem(word: re.Match[str]) -> str:
        text, alike = word.group(), words - {word.group()}
        long = next((n for n in range(_STEM, len(text)) if not any(w.startswith(text[:n]) for w in alike)), len(text))
        return text if long >= len(text) - 1 else f"{text[:long]}…"

    return [_WORD.sub(stem, name) for name in names]


def _by_parts(names: Sequence[str], characters: int, pattern: re.Pattern[str]) -> list[str]:
    """Shorten names by leaving out what a pattern finds; empty where that is not possible."""
    parts = [pattern.findall(name) for name in names]
    shapes: dict[tuple[str, ...], list[list[str]]] = {}
    for one in parts:
        shapes.setdefault(_shape_of(one), []).append(one)
    every = [_Shape(shape, members, _fixed(members)) for shape, members in shapes.items()]
    counts = Counter(chain.from_iterable(set(_shape_of(one)) for one in parts))
    rare = {part: 1.0 - count / len(names) for part, count in counts.items()}
    kept = {shape.parts: _kept(shape, every, rare, characters) for shape in every}
    return [_written(one, places) if (places := kept[_shape_of(one)]) else "" for one in parts]


def _shape_of(parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(_DIGITS.sub("#", part) for part in parts)


def _fixed(members: Sequence[Sequence[str]]) -> frozenset[int]:
    return frozenset(place for place, column in enumerate(zip(*members, strict=True)) if len(set(column)) > 1)


def _kept(shape: _Shape, every: Sequence[_Shape], rare: Mapping[str, float], characters: int) -> Collection[int]:
    """Choose the parts that the labels of one shape keep; none where no choice fits and tells it from others."""
    places = range(len(shape.parts))

    def fits(kept: Collection[int]) -> bool:
        return all(cell_len(_written(one, kept)) <= characters for one in shape.members)

    if fits(places):
        return places

    def worth(kept: Collection[int]) -> tuple[float, int]:
        value = sum(rare[shape.parts[place]] + _NUMBER * ("#" in shape.parts[place]) for place in kept)
        value += _BEFORE_NUMBER * sum(place + 1 in shape.fixed for place in kept)
        value += _LAST * (places[-1] in kept and rare[shape.parts[-1]] > 0.0)
        value -= _PRICE * sum(place + 1 not in kept for place in kept)
        return value, sum(len(shape.parts[place]) for place in kept)

    others = ["".join(f"{part}\0" for part in other.parts) for other in every if other is not shape]
    for kept in sorted(_choices(shape), key=worth, reverse=True):
        pattern = _pattern(shape.parts, kept)
        if fits(kept) and not any(pattern.fullmatch(other) for other in others):
            return kept
    return ()


def _choices(shape: _Shape) -> Iterator[frozenset[int]]:
    free = [place for place in range(len(shape.parts)) if place not in shape.fixed]
    if len(free) <= _MOST_FREE:
        subsets = chain.from_iterable(combinations(free, count) for count in range(len(free)))
        return (shape.fixed.union(subset) for subset in subsets)
    ends = ((head, tail) for head in range(len(free)) for tail in range(len(free) - head))
    return (shape.fixed.union(free[:head], free[len(free) - tail :]) for head, tail in ends)


def _written(parts: Sequence[str], kept: Collection[int]) -> str:
    """Write the kept parts, with a ``…`` for every run of others."""
    text = ""
    for place, part in enumerate(parts):
        if place in kept:
            text += part
        elif not text.endswith("…"):
            text = (text[:-1] if text.endswith(_ENDS) else text) + "…"
    return text


def _pattern(parts: Sequence[str], kept: Collection[int]) -> re.Pattern[str]:
    """Make what a label's text says of a shape whose parts all end with a zero: a ``…`` stands for one or more."""
    order = sorted(kept)
    gap = "(?:[^\0]+\0)+"
    ends = [-1, *order, len(parts)]
    texts = ["", *(re.escape(f"{parts[place]}\0") for place in order), ""]
    pieces = [
        gap * (after - before > 1) + text for (before, after), text in zip(pairwise(ends), texts[1:], strict=True)
    ]
    return re.compile("".join(pieces))
