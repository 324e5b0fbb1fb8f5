"""What all figures have in common: their style, their files, and the names of blocks in them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from rich.cells import cell_len

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.system.formatting import abbreviate

STYLE: Any = {
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 6.0,
    "ytick.labelsize": 6.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "hvp_engine",
    "text.usetex": False,
}
_DPI = 200
_MOST_PIXELS = 20_000  # along a side, whatever the number of blocks


@contextmanager
def figure_at(path: str | os.PathLike[str], width: float, height: float) -> Iterator[Figure]:
    """Give a figure in the common style, and write it to ``path`` afterwards."""
    kind = Path(path).suffix.lstrip(".").lower()
    known = FigureCanvasAgg.get_supported_filetypes()
    if kind not in known:
        raise ConfigurationError(f"{path} has no known image suffix; use one of {', '.join(sorted(known))}.")
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of SVG, whose text stays text
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        try:
            figure.savefig(path, dpi=min(_DPI, _MOST_PIXELS / max(width, height)), facecolor="white")
        except OSError as error:
            raise RunFolderError(f"{path} could not be written ({error}); choose another place.") from error


def drawable(texts: Sequence[str], path: str | os.PathLike[str]) -> list[str]:
    """Escape characters that no font at hand has: as boxes, different names would look alike.

    Text of SVG stays text, drawn with the fonts of whoever looks at it.
    """
    if Path(path).suffix.lower() == ".svg" or all(map(str.isascii, texts)):
        return list(texts)
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in mpl.rcParams["font.family"]]

    def drawn(character: str) -> str:
        known = not character.isprintable() or any(font.get_char_index(ord(character)) for font in fonts)
        return character if known else character.encode("unicode_escape").decode("ascii")

    return ["".join(map(drawn, text)) for text in texts]


def labels(names: Sequence[str], characters: int) -> list[str]:
    """Shorten names to ``characters``; where one is longer, all lose what they share at start and end."""
    if max(map(cell_len, names)) > characters and len(names) > 1:
        parts = [name.split(".") for name in names]
        head, tail = _shared(parts), _shared([part[::-1] for part in parts])
        if head + tail < min(map(len, parts)):
            names = ["…" * (head > 0) + ".".join(part[head : len(part) - tail]) + "…" * (tail > 0) for part in parts]
    return abbreviate(names, characters)


def _shared(parts: list[list[str]]) -> int:
    """Count the leading components that all names share."""
    return len(list(takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))))
