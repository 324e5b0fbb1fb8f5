"""Finished runs: ``merge`` and ``compare``."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike

from hvp_engine.jobs import comparing, merging
from hvp_engine.results.compared import Comparison
from hvp_engine.results.spectra import Spectra


def merge(runs: Iterable[str | PathLike[str] | Spectra], out: str | PathLike[str] | None = None) -> Spectra:
    """Join runs of :func:`slq` that differ in their probes alone: the one run of all of these probes.

    ``slq(..., steps=100, probes=4, first_probe=8)`` takes probes 8 to 11 of the seed. The runs' probes must follow on
    each other, in whatever order the runs are given, and none may be there twice. Coefficients are joined as they are,
    so that estimates and bars are those of one run of all probes; ``slq`` with all of them and ``out`` returns it.

    Args:
        runs: Two or more run folders, or what ``slq`` returned.
        out: Run folder for the result; None writes none.

    Returns:
        The spectra of all probes; ``manifest["merged"]`` says what each run took.

    Raises:
        ConfigurationError: The runs are of different jobs, or adaptive ones, or share probes, or leave some out.
        RunFolderError: A run is not finished, or cannot be read; or ``out`` has another one, or cannot be written.
    """
    return merging.merge(runs, out)


def compare(first: str | PathLike[str] | Spectra, second: str | PathLike[str] | Spectra) -> Comparison:
    """Compare two runs of :func:`slq` block by block: before and after training, two models, two matrices.

    For every block that both have there are the differences of trace, Frobenius norm, smallest and largest eigenvalue
    (second minus first), the Wasserstein-1 distance and the Jensen-Shannon divergence of the two spectra, each with its
    95 % bar. Probes and steps may differ. The bars are those of independent runs; runs with the same seed have the same
    probes, and their differences are known better than the bars say.

    Args:
        first: A run folder, or what ``slq`` returned.
        second: Another one.

    Returns:
        A mapping of block names; ``summary()`` is a table, ``to_dict()`` plain data, ``to_pandas()`` a data frame. It
        says which blocks only one of the runs has, and in what the jobs differ.

    Raises:
        ConfigurationError: The runs have no block in common, or are no runs of ``slq``.
        RunFolderError: A run is not finished, or cannot be read.
    """
    return comparing.compare(first, second)
