"""Running a driver by name: what was asked is checked, what was found is written with all it depends on."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from hvp_engine.errors import ConfigurationError
from hvp_engine.experiments.registry import Driver, Setting, Size, find
from hvp_engine.system.files import open_to_read, prove_writable

if TYPE_CHECKING:
    from hvp_engine.experiments.paper_plan import PlannedPart
    from hvp_engine.experiments.result import Result
    from hvp_engine.problem.precision import Precision

SEEDS = 3
RESULTS = Path("results")
_PIECE = 1 << 20  # bytes of a file hashed at once
_COUNTS = ("m", "probes", "steps", "batch", "tokens")
_STATISTICS = ("data", "raw")  # of BatchNorm


def run(
    name: str,
    size: Size = "small",
    seeds: int = SEEDS,
    out: str | os.PathLike[str] | None = None,
    data: Mapping[str, str | os.PathLike[str]] | None = None,
    weights: Mapping[str, str | os.PathLike[str]] | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    options: Mapping[str, object] | None = None,
) -> Result:
    """Run an experiment and write its table, claims and figures; the same call again resumes one that was interrupted.

    Args:
        name: One of ``hvp-engine experiment``'s list, ``"js-heatmaps"`` or ``"D4"``.
        size: ``"small"`` for two cores, ``"paper"`` for the papers' sizes.
        seeds: How many: 0, 1, ...
        out: Folder to write; None takes ``results/<name>``. What drivers share is cached beside it.
        data: Paths of data sets by name.
        weights: Paths of pre-trained weights by name.
        device: ``"cpu"`` or ``"cuda"``.
        precision: Arithmetic of the products.
        options: Single settings to override, of those that the driver has.

    Returns:
        What was found; ``claims`` says whether each claim holds.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    driver = find(name)
    setting = Setting(
        size,
        seeds,
        RESULTS / driver.name if out is None else Path(out),
        {key: Path(path) for key, path in (data or {}).items()},
        {key: Path(path) for key, path in (weights or {}).items()},
        device,
        precision,
        {key: str(value) for key, value in (options or {}).items()},
    )
    check(driver, setting)
    _check_device(device)
    for folder in (setting.out, setting.out.parent / "cache"):
        prove_writable(folder)
    asked = _asked(setting)  # before the work: of the files as they are read, not as they may be afterwards
    began = time.perf_counter()
    result: Result = _function(driver, "run")(setting)
    seconds = {**result.seconds, "total": time.perf_counter() - began}
    result = replace(result, settings={**result.settings, **asked}, seconds=seconds)
    result.write(setting.out, driver)
    return result


def plan(name: str, setting: Setting) -> list[PlannedPart]:
    """Return what a driver costs at the paper's size; nothing where that is the small size.

    Raises:
        HvpEngineError: One of its subclasses, with cause and fix.
    """
    driver = find(name)
    check(driver, setting)
    function = _function(driver, "plan")
    return [] if function is None else function(setting)


def check(driver: Driver, setting: Setting) -> None:
    """Refuse what no driver, or not this one, can do.

    Raises:
        ConfigurationError: A setting is out of range or unknown, or a path is not there.
    """
    if setting.size not in get_args(Size):
        raise ConfigurationError(f"size={setting.size!r} is not one of 'small' and 'paper'.")
    if setting.seeds < 1:
        raise ConfigurationError(f"seeds={setting.seeds} is too few; give at least 1.")
    for key in setting.options:
        if key not in driver.options:
            known = f"it has {', '.join(driver.options)}" if driver.options else "it has none, so leave --set out"
            raise ConfigurationError(f"The experiment {driver.name} has no setting {key!r}; {known}.")
    _check_options(setting)
    _check_paths(setting)
    if setting.size == "small":
        _check_packages(driver, setting)


def _check_options(setting: Setting) -> None:
    """Refuse values that no driver can work with, as far as all drivers take them for the same."""
    for key in _COUNTS:
        if key in setting.options and setting.option(key, 1) < 1:
            raise ConfigurationError(f"Option --set {key}={setting.options[key]} is too few; give at least 1.")
    if (found := setting.option("bn", "data")) not in _STATISTICS:
        raise ConfigurationError(f"Option --set bn={found} is neither {' nor '.join(_STATISTICS)}; give one of them.")


def _check_paths(setting: Setting) -> None:
    """Refuse paths that are not there, and those of data and weights that nothing reads: their names are misspelt."""
    if not setting.data and not setting.weights:
        return
    from hvp_engine.experiments.given import DATA, WEIGHTS  # noqa: PLC0415 - imports the networks

    for kind, known in (("data", DATA), ("weights", WEIGHTS)):
        for key, path in getattr(setting, kind).items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                meant = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(known)}."
                raise ConfigurationError(f"No experiment reads {kind} of the name {key!r}; {meant}")
            if not path.exists():
                raise ConfigurationError(f"{kind} {key!r}: {path} is not there; check the path of --{kind} {key}.")


def _check_packages(driver: Driver, setting: Setting) -> None:
    """Refuse to begin without data or weights that would be missed after minutes."""
    from hvp_engine.experiments import weights  # noqa: PLC0415 - a refusal of anything else comes sooner
    from hvp_engine.experiments.data.packages import PACKAGES  # noqa: PLC0415

    given = {*setting.options, *setting.data}
    reads = () if given.intersection(driver.instead) else driver.reads
    for name in reads:
        if name not in setting.data:
            PACKAGES[name].folder()
    for name in driver.loads:
        weights.find(name, setting)


def _check_device(name: str) -> None:
    """Refuse a device that this machine does not have."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device={name!r} is no device; use 'cpu' or 'cuda'.") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigurationError(f"device={name!r} is not there: PyTorch sees {count} CUDA devices; use 'cpu'.")


def _function(driver: Driver, function: str) -> Any:
    """Return a function of a driver's module, None where it has none of that name.

    Raises:
        ConfigurationError: A package that the driver needs is not installed.
    """
    try:
        module = importlib.import_module(f"hvp_engine.experiments.drivers.{driver.module}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not driver.needs or missing in ("", "hvp_engine"):
            raise
        raise ConfigurationError(
            f"The experiment {driver.name} needs the package {missing}, which is not installed; "
            f"pip install 'hvp-engine[{','.join(driver.needs)}]' brings it."
        ) from error
    return getattr(module, function, None)


def _asked(setting: Setting) -> dict[str, object]:
    """Return what the command said, and under ``given`` what it pointed at: drivers say ``data`` of what they read."""
    from hvp_engine.experiments import weights  # noqa: PLC0415 - what is refused is refused sooner without it

    return {
        "size": setting.size,
        "seeds": list(range(setting.seeds)),
        "device": setting.device,
        "precision": setting.precision,
        "options": dict(setting.options),
        "given": {
            "data": {name: _described(path) for name, path in setting.data.items()},
            "weights": {name: weights.source(name, setting).described() for name in setting.weights},
        },
    }


def _described(path: Path) -> dict[str, object]:
    """Return a file's digest; a folder's, which may be that of ImageNet, by the names and sizes of what is in it."""
    digest = hashlib.blake2b(digest_size=16)
    if not path.is_dir():
        with open_to_read(path) as (file, size):
            while piece := file.read(_PIECE):
                digest.update(piece)
        return {"path": str(path), "bytes": size, "blake2b": digest.hexdigest()}
    size = count = 0
    for folder, inner, files in os.walk(path):
        inner.sort()
        for name in sorted(files):
            file_path = Path(folder, name)
            length = file_path.lstat().st_size
            digest.update(f"{file_path.relative_to(path)}\0{length}\n".encode())
            size, count = size + length, count + 1
    return {"path": str(path), "bytes": size, "files": count, "blake2b of names and sizes": digest.hexdigest()}
