"""Whether a run folder holds the job that was asked for: two identities compared part by part, differences in words.

Losses and products are compared to rounding. How much that is depends on the arithmetic, and on where the job runs: on
one machine, with as many threads and the same pieces of data, they repeat almost to the last bit; on another one the
code of the loss tells whether a small difference is rounding. Where they repeat to the very last bit, a setting that is
shown otherwise changed nothing: a counter, a number drawn for a name, a configuration that was read from a file again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hvp_engine.errors import ForeignRunError
from hvp_engine.jobs.environment import changes
from hvp_engine.system.formatting import first_names

Identity = Mapping[str, Any]

_ROUNDING = {
    "fp64": 1e-11,
    "fp32": 1e-6,
    "tf32": 1e-5,
    "bf16": 1e-4,
}  # of a batch's loss, where nothing else changed ...
_ELSEWHERE = 1e3  # ... and as many times that on another machine, if the code of the loss is the same
_PRODUCTS = 1e3  # how much more products are rounded than losses
_NOISE = 1e-5  # of the largest product: smaller ones may be rounding altogether
_EVIDENCE = {"environment", "loss", "losses", "products"}  # parts that are not compared for equality
_SHOWN, _WIDTH, _CONTEXT = 3, 60, 20


def refuse_foreign(found: Identity, wanted: Identity, run: Path) -> None:
    """Raise unless a stored identity is this job's.

    Raises:
        ForeignRunError: They differ; the message names in what.
    """
    _refuse_early_versions(found, run)
    _refuse(differences(found, wanted), run)


def refuse_at_first_sight(found: Identity, described: Identity, run: Path) -> None:
    """Raise where a stored identity cannot be this job's, by what is known before the loss is evaluated on the data.

    Args:
        found: The stored identity.
        described: This job's, so far: no losses, no products, no environment.
        run: The run folder.

    Raises:
        ForeignRunError: They differ in what losses and products do not excuse; the message names in what.
    """
    _refuse_early_versions(found, run)
    _refuse(_stated_differences(found, described, _other_classes), run)


def _refuse_early_versions(found: Identity, run: Path) -> None:
    if "first_loss" in found:
        raise ForeignRunError(
            f"{run} was written by an earlier hvp_engine, which knew too little of a job to tell whether it is this "
            "one. Choose another folder for out=; Spectra.load reads that one."
        )


def _refuse(different: Sequence[str], run: Path) -> None:
    if different:
        raise ForeignRunError(
            f"{run} holds another job ({in_short(different)}). Choose another folder for out=, or delete that one."
        )


def in_short(different: Sequence[str]) -> str:
    """List the first of some differences; a stranger's words they may be, and nothing of them may steer a terminal."""
    return "; ".join(ascii(words)[1:-1] if not words.isprintable() else words for words in different[:_SHOWN])


def differences(found: Identity, wanted: Identity) -> list[str]:
    """Say in what two jobs differ: settings, model and data, and only where these are equal losses and products."""
    moved = changes(_mapping(found.get("environment")), _mapping(wanted.get("environment")))
    same_versions = _versions(found) == _versions(wanted)
    # Releases show settings differently, and compile to other code.
    in_detail = same_versions and not _same_bits(found, wanted)
    different = _stated_differences(found, wanted, None if in_detail else _class_names)
    if different:
        return different
    same_code = _code(found, exact=same_versions) == _code(wanted, exact=same_versions)
    if "losses" not in found or "losses" not in wanted:  # a result of a job without a run folder
        return [] if same_code else _values("loss", found.get("loss"), wanted.get("loss"))
    rounding = _ROUNDING.get(str(wanted.get("precision")), max(_ROUNDING.values()))
    excused = bool(moved) and same_code
    different = _losses(found["losses"], wanted.get("losses"), rounding * (_ELSEWHERE if excused else 1.0))
    same_pieces = _microbatch(found) == _microbatch(wanted)
    if different or excused or not same_pieces:
        return different
    return _products(_mapping(found.get("products")), _mapping(wanted.get("products")), rounding * _PRODUCTS)


def _stated_differences(
    found: Identity, wanted: Identity, narrowed: Callable[[Any, Any], tuple[Any, Any]] | None
) -> list[str]:
    """Say in what two jobs differ beside what was computed.

    Args:
        found: One identity.
        wanted: The other.
        narrowed: Leaves what counts of the two's modules or hooks; None for all of them.
    """
    different: list[str] = []
    for key in {**found, **wanted}:
        if key not in _EVIDENCE:
            there, here = found.get(key), wanted.get(key)
            if key in _WORDS and narrowed is not None:
                there, here = narrowed(there, here)
            different += _COMPARED.get(key, _values)(key, there, here)
    return different


def _same_bits(found: Identity, wanted: Identity) -> bool:
    """Say whether both were computed, and nothing that was differs."""
    return bool(found.get("losses")) and all(found.get(key) == wanted.get(key) for key in ("losses", "products"))


def _values(key: str, there: Any, here: Any) -> list[str]:
    return [] if there == here else [f"{key}: {_both(repr(there), repr(here))}"]


def _described(key: str, there: Any, here: Any) -> list[str]:
    """Compare what is in words, by name."""
    old, new = _mapping(there), _mapping(here)
    kind = {"modules": "module ", "hooks": "hooks of "}[key]
    return [
        f"{kind + name if name else 'the model'} {_both(_in_words(old.get(name)), _in_words(new.get(name)))}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _digests(key: str, there: Any, here: Any) -> list[str]:
    """Compare tensors by name."""
    old, new = _mapping(there), _mapping(here)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{key}: {first_names(names)} changed"] if names else []


def _batches(key: str, there: Any, here: Any) -> list[str]:
    old, new = _sequence(there), _sequence(here)
    if len(old) != len(new):
        return [f"{key}: {len(old)} batches there, {len(new)} here"]
    numbers = [str(number) for number, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]]
    return [f"{key}: batch {first_names(numbers)} of {len(new)} changed"] if numbers else []


def _losses(there: Any, here: Any, tolerance: float) -> list[str]:
    old, new = _sequence(there), _sequence(here)
    if len(old) != len(new):
        return [f"losses: {len(old)} there, {len(new)} here"]
    different = []
    for number, (first, second) in enumerate(zip(old, new, strict=True)):
        (total, weight), (total_now, weight_now) = _pair(first), _pair(second)
        if not math.isclose(weight, weight_now, rel_tol=tolerance):
            different.append(f"weight of batch {number}: {_both(repr(weight), repr(weight_now))}")
        elif not math.isclose(total, total_now, rel_tol=tolerance):
            means = [value / weight if weight else value for value in (total, total_now)]
            different.append(f"loss of batch {number}: {_both(*_digits(*means))}")
    return different


def _products(there: Mapping[str, Any], here: Mapping[str, Any], tolerance: float) -> list[str]:
    old, new = ({name: _number(norm) for name, norm in norms.items()} for norms in (there, here))
    noise = _NOISE * max(new.values(), default=0.0)
    return [
        f"curvature of block {name}: {_both(*_digits(old[name], norm))}"
        for name, norm in new.items()
        if name in old and not math.isclose(old[name], norm, rel_tol=tolerance, abs_tol=noise)
    ]


_Compare = Callable[[str, Any, Any], list[str]]
_WORDS = ("modules", "hooks")
_COMPARED: dict[str, _Compare] = {
    **dict.fromkeys(_WORDS, _described),
    **dict.fromkeys(("parameters", "buffers", "precondition"), _digests),
    "data": _batches,
}


def _versions(identity: Identity) -> Any:
    return _mapping(identity.get("environment")).get("versions")


def _microbatch(identity: Identity) -> Any:
    return _mapping(identity.get("environment")).get("microbatch")


def _code(identity: Identity, *, exact: bool) -> str:
    """Return what is known of the loss's code: its name alone where releases of Python compile to different code."""
    text = str(identity.get("loss"))
    return text if exact else text.partition(" [")[0]


def _classes(described: Any) -> dict[str, Any]:
    """Leave the names of classes and functions, without settings and code."""
    return {
        name: [str(text).partition(" [")[0] for text in words]
        if isinstance(words, list)
        else str(words).partition("(")[0]
        for name, words in _mapping(described).items()
    }


def _class_names(there: Any, here: Any) -> tuple[Any, Any]:
    """Leave the names of classes and functions of two descriptions, without settings and code."""
    return _classes(there), _classes(here)


def _other_classes(there: Any, here: Any) -> tuple[Any, Any]:
    """Leave, in all detail, what has other names of classes and functions in another description."""
    old, new = _class_names(there, here)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    detailed = [{name: words[name] for name in names if name in words} for words in map(_mapping, (there, here))]
    return detailed[0], detailed[1]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _in_words(value: Any) -> str:
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _pair(value: Any) -> tuple[float, float]:
    """Read a total and a weight."""
    total, weight = value if isinstance(value, list) and len(value) == 2 else (None, None)
    return _number(total), _number(weight)


def _number(value: Any) -> float:
    """Read a number; what is none equals nothing."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _digits(there: float, here: float) -> tuple[str, str]:
    """Write two numbers with as many digits as tell them apart."""
    for digits in range(3, 17):
        old, new = f"{there:.{digits}g}", f"{here:.{digits}g}"
        if old != new:
            return old, new
    return repr(there), repr(here)


def _both(there: str, here: str) -> str:
    """Show two texts from where they begin to differ."""
    start = 0
    if max(len(there), len(here)) > _WIDTH:
        differ = next((i for i, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1]), 0)
        start = max(0, differ - _CONTEXT)
    return " there, ".join(_short(text, start) for text in (there, here)) + " here"


def _short(text: str, start: int) -> str:
    shown = ("..." if start else "") + text[start:]
    return shown if len(shown) <= _WIDTH else shown[: _WIDTH - 3] + "..."
