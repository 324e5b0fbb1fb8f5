"""Calls functions of the compiled extension with wrong arguments, in a process of its own: a crash ends it.

The process runs this file as a script: ``python native_fuzz.py EXTENSION MODULE NAME``, its output a file. Before each
call it writes there what it is going to call, and in the end, as JSON, the number of calls and what was accepted
although it must not be. It does not load PyTorch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from native_examples import Address, Dtype, Handle, Size, examples

HUGE = (1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, 1 << 64, -(1 << 62))
NOT_NUMBERS = (None, "7", b"7", [], object(), 1j)
PAIRS = 200  # calls with two wrong arguments, chosen at random
ERRORS = (ValueError, TypeError)

Wrong = tuple[Any, bool]  # a value, and whether it must be refused


def wrong_numbers(leaf: Any) -> Iterator[Wrong]:
    """Values in place of a number of some meaning."""
    yield from ((value, not isinstance(leaf, bool)) for value in NOT_NUMBERS)
    if isinstance(leaf, Address):
        values = (-1, 1, 8, 4095, *HUGE, 1.5, *([leaf + 1] if leaf.alignment > 1 else []))
        yield from ((value, True) for value in values)
        yield 0, not leaf.optional
    elif isinstance(leaf, Size):
        yield from ((value, True) for value in (-1, -leaf - 1, *HUGE, 1.5))
        yield 0, False
    elif isinstance(leaf, Dtype):
        yield from ((value, True) for value in (-1, 4, 255, 1 << 31, *HUGE, 1.5))
        yield from ((value, False) for value in (0, 1, 2, 3))
    elif isinstance(leaf, Handle):
        yield from ((value, value >= 1 << 62) for value in (-1, 0, *HUGE))
    else:  # any value of its type will do
        yield from ((value, False) for value in (0, -1, *HUGE, 1.5, float("nan"), float("inf")))


def wrong_arrays(array: np.ndarray) -> Iterator[Wrong]:
    """Arrays in place of an array."""
    yield from ((value, True) for value in (None, 0, "7", array.tolist(), array.astype(np.float32)))
    yield from ((value, True) for value in (array[..., :-1].copy(), array[:0], array.T[::-1]))
    yield array[None], False
    raw = np.zeros(array.nbytes + 1, dtype=np.uint8)[1:].view(array.dtype)
    raw = raw.reshape(array.shape)
    raw[...] = array
    yield raw, True
    if array.dtype != np.int64:
        return
    for place in np.ndindex(array.shape):
        for value in (0, -1, 1, 1 << 62, (1 << 63) - 1, -(1 << 62), int(array[place]) + 1):
            changed = array.copy()
            changed[place] = value
            yield changed, False


def wrong(value: Any) -> Iterator[Wrong]:
    """Everything wrong in place of an argument, in any depth."""
    if isinstance(value, np.ndarray):
        yield from wrong_arrays(value)
    elif isinstance(value, list | tuple):
        yield from ((instead, True) for instead in (0, "7", object(), value[:-1], type(value)((*value, value))))
        for place, part in enumerate(value):
            for instead, refused in wrong(part):
                changed = [*value]
                changed[place] = instead
                yield type(value)(changed), refused and not is_absent(instead, part)
    elif isinstance(value, int | float):
        yield from wrong_numbers(value)
    else:  # an object of the extension
        yield from ((instead, True) for instead in (None, 0, "7", object()))


def is_absent(instead: Any, part: Any) -> bool:
    """Whether None stands for an absent tensor."""
    return instead is None and isinstance(part, tuple)


def load(path: str, name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class Fuzzer:
    """Calls one function."""

    def __init__(self, function: Any, name: str):
        self.function, self.name = function, name
        self.calls, self.faults = 0, []

    def call(self, arguments: list[Any], refused: bool, what: str) -> None:
        os.pwrite(1, f"{self.name}: {what}".encode()[:500].ljust(500) + b"\n", 0)
        self.calls += 1
        try:
            self.function(*arguments)
        except ERRORS as error:
            if not str(error).strip() or (self.calls == 1 and "No constructor" not in str(error)):
                self.faults.append(f"{what}: {error!r}")
        except MemoryError:
            if refused:
                self.faults.append(f"{what}: MemoryError")
        except RuntimeError as error:  # no device, or not this one
            if refused or "cuda" not in self.name:
                self.faults.append(f"{what}: {error}")
        else:
            if refused:
                self.faults.append(f"{what}: accepted")

    def run(self, arguments: list[Any]) -> None:
        self.call(arguments, False, "what is right")
        if self.faults:
            return
        choices = [list(wrong(argument)) for argument in arguments]
        for place, values in enumerate(choices):
            for value, refused in values:
                changed = [*arguments[:place], value, *arguments[place + 1 :]]
                self.call(changed, refused, f"argument {place} = {value!r}")
        self.call([*arguments, None], True, "one argument more")
        if arguments:
            self.call(arguments[:-1], True, "one argument less")
        rng = random.Random(0)
        for _ in range(PAIRS if len(arguments) > 1 else 0):
            one, other = rng.sample(range(len(arguments)), 2)
            changed = list(arguments)
            changed[one], changed[other] = rng.choice(choices[one])[0], rng.choice(choices[other])[0]
            self.call(changed, False, f"arguments {one} = {changed[one]!r}, {other} = {changed[other]!r}")


def main(path: str, module: str, name: str) -> None:
    native = load(path, module)
    fuzzer = Fuzzer(getattr(native, name), name)
    fuzzer.run(examples(native)[name])
    os.ftruncate(1, 0)
    os.pwrite(1, json.dumps({"calls": fuzzer.calls, "faults": fuzzer.faults}).encode(), 0)


def fuzz(path: str, module: str, name: str) -> int:
    """Runs the script; returns the number of calls.

    Raises:
        AssertionError: The process crashed or hung, or accepted what it must not.
    """
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, __file__, path, module, name]
        done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        output.seek(0)
        said = output.read()
    assert done.returncode == 0, f"status {done.returncode} at {said.strip()} {done.stderr}"
    found = json.loads(said)
    assert found["faults"] == []
    return found["calls"]


if __name__ == "__main__":
    main(*sys.argv[1:])
