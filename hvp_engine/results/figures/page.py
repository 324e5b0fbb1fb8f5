"""What all figures have in common: their style, their files, and how they show in notebooks."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.system.files import path_of

_OURS = {
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
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "hvp_engine",
    "text.usetex": False,
}
# Of whoever draws, only fonts stay: a dark theme would write white on white.
_FROM_DEFAULTS: tuple[str, ...] = ("axes.", "errorbar.", "figure.", "grid.", "hatch.", "lines.", "patch.")
_FROM_DEFAULTS += ("image.aspect", "image.origin", "savefig.", "text.color", "xtick.", "ytick.")
STYLE: Any = {key: mpl.rcParamsDefault[key] for key in mpl.rcParamsDefault if key.startswith(_FROM_DEFAULTS)} | _OURS

_DPI = 200
_MOST_PIXELS = 20_000  # along a side, whatever the number of blocks
_one_at_a_time = threading.RLock()  # matplotlib's settings are those of the process


@contextmanager
def _style() -> Iterator[None]:
    """Draw in the common style while the context is open."""
    with _one_at_a_time, mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of SVG, whose text stays text
        yield


class Page(Figure):
    """A figure in the common style, whatever matplotlib's settings are when it is drawn, and known to no pyplot."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw in the common style."""
        with _style():
            super().draw(renderer)

    def savefig(self, fname: Any, **options: Any) -> None:
        """Write the figure; arguments are those of :meth:`matplotlib.figure.Figure.savefig`."""
        with _style():
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        """Give notebooks the picture, also those that never imported pyplot."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


@contextmanager
def page(path: str | os.PathLike[str] | None, width: float, height: float) -> Iterator[Page]:
    """Give a figure of so many inches in the common style; afterwards it is written to ``path``, if there is one.

    Raises:
        ConfigurationError: The suffix names no known format.
        RunFolderError: The file cannot be written.
    """
    if path is not None:
        _check_suffix(path)
    with _style():
        figure = Page(figsize=(width, height), dpi=min(_DPI, _MOST_PIXELS / max(width, height)), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
    if path is not None:
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} could not be written ({error}); choose another place.") from error


def _check_suffix(path: str | os.PathLike[str]) -> None:
    kind = path_of(path).suffix.lstrip(".").lower()
    known = set(FigureCanvasAgg.get_supported_filetypes()) - {"pgf"}  # which takes a TeX
    if kind not in known:
        raise ConfigurationError(f"{path} has no known image suffix; use one of {', '.join(sorted(known))}.")


def drawable(texts: Sequence[str], path: str | os.PathLike[str] | None) -> list[str]:
    """Escape characters that no font at hand has: as boxes, different names would look alike.

    Text of SVG stays text, drawn with the fonts of whoever looks at it.
    """
    if (path is not None and path_of(path).suffix.lower() == ".svg") or all(map(str.isascii, texts)):
        return list(texts)
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in mpl.rcParams["font.family"]]

    def drawn(character: str) -> str:
        known = not character.isprintable() or any(font.get_char_index(ord(character)) for font in fonts)
        return character if known else character.encode("unicode_escape").decode("ascii")

    return ["".join(map(drawn, text)) for text in texts]
