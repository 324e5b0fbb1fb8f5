"""Results as plain rows and columns: what notebooks show, and what pandas and files for other programs are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hvp_engine.errors import ConfigurationError
from hvp_engine.results.html_table import html_table
from hvp_engine.results.text_table import text_table

if TYPE_CHECKING:
    import pandas

Row = dict[str, str | float | bool | None]
"""Values by the names of their columns; ``"block"`` is the first."""

_OF_A_BAR = ("stderr", "low", "high", "reading")


class Cells(NamedTuple):
    """A table of numbers in words.

    Attributes:
        titles: Of the numbers.
        rows: Name of a block, and its numbers.
        above: Lines above the table.
        below: Lines below it.
        first: Title of the names.
    """

    titles: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    above: Sequence[str] = ()
    below: Sequence[str] = ()
    first: str = "block"

    def text(self) -> str:
        """Write the table with its lines as plain text."""
        return "\n".join((*self.above, *text_table(self.titles, self.rows, self.first), *self.below))


class Tabular(ABC):
    """A result that is a table, whatever else it is."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """Return every number unrounded, a row per block: an estimate with its bar in columns beside it."""

    @abstractmethod
    def _cells(self) -> Cells:
        """Write the numbers as tables show them."""

    def further_rows(self) -> Mapping[str, list[Row]]:
        """Return the rows of further tables by name, which have more of them than there are blocks; most have none."""
        return {}

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return the arrays of every block as ``"block/name"``; none where the rows have everything."""
        return {}

    def summary(self) -> str:
        """Write a table: every number with its 95 % bar, as far as it has one."""
        return self._cells().text()

    def to_pandas(self) -> pandas.DataFrame:
        """Return the rows as a data frame with the blocks as its index; needs pandas.

        Raises:
            ConfigurationError: Pandas is not installed.
        """
        try:
            import pandas  # noqa: PLC0415 - no dependency of the package
        except ImportError as error:
            raise ConfigurationError(
                "This needs pandas, which is not there: pip install pandas, or this package with its extra [pandas]."
            ) from error
        found = {name: column.tolist() for name, column in columns(self.rows()).items()}
        return pandas.DataFrame(found).set_index("block")

    def _repr_html_(self) -> str:
        """Show a table in a notebook."""
        return html_table(*self._cells())


def flat(entry: Mapping[str, Any]) -> Row:
    """Turn the plain data of a block into a row: of an estimate, the value and its bar in columns of their own.

    Args:
        entry: Plain data, with the block's name under ``"name"``; lists have no place in a row and are left out.
    """
    row: Row = {}
    for key, value in entry.items():
        if isinstance(value, Mapping):
            row[key] = value["value"]
            row |= {f"{key}_{part}": value[part] for part in _OF_A_BAR}
        elif not isinstance(value, list):
            row["block" if key == "name" else key] = value
    return row


def columns(rows: Sequence[Row]) -> dict[str, NDArray[Any]]:
    """Return the columns of some rows as arrays: text, truth values, whole numbers or float64, nan for what is not."""
    return {name: _column([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _column(values: Sequence[str | float | bool | None]) -> NDArray[Any]:
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else str(value) for value in values])
    if all(isinstance(value, bool) for value in values):
        return np.array(values, dtype=np.bool_)
    if all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
