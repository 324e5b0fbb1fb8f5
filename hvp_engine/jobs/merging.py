"""Runs of the same job that differ in their probes, joined: the run of all of these probes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvp_engine.errors import ConfigurationError, RunFolderError
from hvp_engine.jobs.comparison import differences, in_short, refuse_foreign
from hvp_engine.jobs.environment import changes
from hvp_engine.jobs.finished import Run, finished
from hvp_engine.jobs.folder import JobFolder, located
from hvp_engine.jobs.origin import here_and_now
from hvp_engine.krylov.ghosts import ghost_facts
from hvp_engine.problem.precision import Precision, working_dtype
from hvp_engine.results.spectra import Spectra
from hvp_engine.results.spectrum import Spectrum
from hvp_engine.system.run_files import is_finished, read_manifest

_RANGE = ("probes", "first_probe")  # what of an identity may differ
_ROWS = ("alphas", "betas", "nodes", "weights", "steps", "residuals")  # of a spectrum, a row for each probe
_SAME = ("numel", "deflated", "reorthogonalized")


@dataclass(frozen=True)
class _Part:
    """One of the runs.

    Attributes:
        label: How messages call it.
        spectra: What it found.
        identity: Its job.
        numbers: Of its probes.
    """

    label: str
    spectra: Spectra
    identity: Mapping[str, Any]
    numbers: range


def merge(runs: Iterable[Run], out: str | PathLike[str] | None) -> Spectra:
    """Join runs, and write what is joined into a run folder where one is given; see :func:`hvp_engine.merge`.

    Raises:
        ConfigurationError: There are fewer than two runs, or they cannot be joined.
        RunFolderError: A run cannot be read or is not finished, or the result cannot be written.
    """
    several = isinstance(runs, Iterable) and not isinstance(runs, (str, PathLike, Spectra))
    given = list(runs) if several else []
    if len(given) < 2:
        raise ConfigurationError("The runs to merge must be two or more; give a list of their folders.")
    parts = [_part(run, place) for place, run in enumerate(given, 1)]
    for part in parts[1:]:
        _refuse_other_job(part, parts[0])
    parts.sort(key=lambda part: part.numbers.start)
    for one, after in pairwise(parts):
        _refuse_gap(one, after)
    merged = _joined(parts)
    if out is not None:
        _write(merged, located(out))
    return merged


def _part(run: Run, place: int) -> _Part:
    """Read a run, and refuse one whose probes are not a part of anything."""
    label, spectra = found = finished(run, f"Run {place}")
    identity = found.identity
    if not identity or "first_loss" in identity:
        raise ConfigurationError(
            f"{label} does not say which job it is of, or an earlier hvp_engine wrote it; run it again to merge it."
        )
    if "tolerance" in identity:
        raise ConfigurationError(
            f"{label} found out by its tolerance how many probes it takes, so that it is no part of a larger job; give "
            "its steps or probes, and no tolerance, to run one that is."
        )
    probes, first = identity.get("probes"), identity.get("first_probe", 0)
    if not isinstance(first, int) or any(spectrum.probes != probes for spectrum in spectra.values()):
        raise RunFolderError(f"{label} is damaged: it has not the probes that it says; run it again.")
    return _Part(label, spectra, identity, range(first, first + next(iter(spectra.values())).probes))


def _refuse_other_job(part: _Part, first: _Part) -> None:
    """Raise unless a run differs from the first one in its probes alone."""
    there, here = ({key: value for key, value in each.identity.items() if key not in _RANGE} for each in (part, first))
    if different := differences(there, here):
        raise ConfigurationError(
            f"{part.label} and {first.label} are of different jobs ({in_short(different)}); runs that are merged may "
            "differ in probes and first_probe alone."
        )
    for name, spectrum in first.spectra.items():
        other = part.spectra[name]
        fits = all(getattr(spectrum, key) == getattr(other, key) for key in _SAME)
        if not fits or spectrum.alphas.shape[1] != other.alphas.shape[1] or len(spectrum.singles) + len(other.singles):
            raise RunFolderError(f"{part.label} or {first.label} is damaged: block {name!r} differs; run them again.")


def _refuse_gap(one: _Part, after: _Part) -> None:
    """Raise unless the probes of a run begin where those of another one end."""
    end, start = one.numbers.stop, after.numbers.start
    if start < end:
        shared = range(start, min(end, after.numbers.stop))
        raise ConfigurationError(
            f"{one.label} and {after.label} have the same probes ({_numbers(shared)}), which would count twice; leave "
            f"one of them out, or run it with first_probe={end}."
        )
    if start > end:
        raise ConfigurationError(
            f"Between {one.label} and {after.label} probes are missing ({_numbers(range(end, start))}); run them with "
            f"first_probe={end}, probes={start - end}, and merge all."
        )


def _numbers(probes: range) -> str:
    return f"{probes[0]}" if len(probes) == 1 else f"{probes[0]} to {probes[-1]}"


def _joined(parts: Sequence[_Part]) -> Spectra:
    """Put the probes of all runs, in order, into one result."""
    spectra = [_block([part.spectra[name] for part in parts]) for name in parts[0].spectra]
    data_error = next((part.spectra.data_error for part in parts if part.spectra.data_error is not None), None)
    return Spectra(spectra, _manifest(parts, spectra), data_error)


def _block(pieces: Sequence[Spectrum]) -> Spectrum:
    """Join the probes of one block; its products were as uncertain as those of the least certain run."""
    rows: dict[str, Any] = {key: np.concatenate([getattr(piece, key) for piece in pieces]) for key in _ROWS}
    return replace(pieces[0], noise=max(piece.noise for piece in pieces), **rows)


def _manifest(parts: Sequence[_Part], spectra: Sequence[Spectrum]) -> dict[str, Any]:
    """Return the facts of the whole: those of the first run where they are the same for all, sums where they add up."""
    facts = [part.spectra.manifest for part in parts]
    numbers = {"probes": sum(len(part.numbers) for part in parts), "first_probe": parts[0].numbers.start}
    steps = [sum(int(spectrum.steps.sum()) for spectrum in part.spectra.values()) for part in parts]
    reads = [fact.get("basis_reads", 0.0) for fact in facts]
    identity = next((part.identity for part in parts if "losses" in part.identity), parts[0].identity)
    precision = identity["precision"]
    ghosts, words = _ghosts(spectra, precision)
    known = [word for part in parts for word in _ghosts(list(part.spectra.values()), precision)[1]]
    notes = [note for fact in facts for note in fact.get("notes", []) if note not in known]
    return {
        **facts[0],
        "identity": _with_range(identity, numbers),
        "config": _with_range(facts[0].get("config", {}), numbers),
        "origin": {**facts[0].get("origin", {}), **here_and_now()},
        "plan": {**facts[0].get("plan", {}), "waves": sum(fact.get("plan", {}).get("waves", 0) for fact in facts)},
        "seconds": round(sum(fact.get("seconds", 0.0) for fact in facts), 3),
        "sittings": [sitting for fact in facts for sitting in fact.get("sittings", [])],
        "lost_orthogonality": max(fact.get("lost_orthogonality", 0.0) for fact in facts),
        "basis_reads": sum(read * count for read, count in zip(reads, steps, strict=True)) / max(1, sum(steps)),
        "notes": [*dict.fromkeys([*notes, *_conditions(parts), *words])],
        **({"ghosts": ghosts} if ghosts else {}),
        "merged": [record for part in parts for record in _records(part)],
    }


def _with_range(config: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    """Return a configuration for other probes; one that begins with probe 0 has no word of it."""
    kept = {key: value for key, value in config.items() if key not in _RANGE}
    return {**kept, **{key: value for key, value in numbers.items() if value or key == "probes"}}


def _ghosts(spectra: Sequence[Spectrum], precision: Precision) -> tuple[dict[str, dict[str, int | None]], list[str]]:
    """Say of blocks without reorthogonalisation what a run of all probes would say."""
    unprotected = {spectrum.name: spectrum.coefficients for spectrum in spectra if not spectrum.reorthogonalized}
    return ghost_facts(unprotected, float(torch.finfo(working_dtype(precision)).eps)) if unprotected else ({}, [])


def _conditions(parts: Sequence[_Part]) -> Iterator[str]:
    """Say where runs ran on something else than the first one."""
    first, *others = (part.identity.get("environment", {}) for part in parts)
    for part, there in zip(parts[1:], others, strict=True):
        if different := changes(there, first):
            yield (
                f"{part.label} ran under other conditions than {parts[0].label} ({in_short(different)}); its probes "
                "may differ by rounding from what they would be there."
            )


def _records(part: _Part) -> list[dict[str, Any]]:
    """Return what is kept of each run: its probes, and how they were made; a merged one has those of its parts."""
    facts = part.spectra.manifest
    if isinstance(facts.get("merged"), list):
        return list(facts["merged"])
    kept: dict[str, Any] = {key: facts[key] for key in ("seconds", "origin", "plan", "verification") if key in facts}
    return [{"probes": len(part.numbers), "first_probe": part.numbers.start, **kept}]


def _write(merged: Spectra, folder: Path) -> None:
    """Write a result into a folder that no other job has, or had and left its result in."""
    job = JobFolder(folder)
    if job.has_work:
        job.close()
        raise RunFolderError(f"An unfinished job has {folder}; choose another folder for the merged run.")
    try:
        if is_finished(folder):
            facts = read_manifest(folder).get("run")
            stored = facts.get("identity") if isinstance(facts, Mapping) else None
            refuse_foreign(stored if isinstance(stored, Mapping) else {}, merged.manifest["identity"], folder)
        merged.save(folder)
    finally:
        job.remove()
