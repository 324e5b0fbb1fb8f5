"""Random generators as sources of states: read, put back, and set so that what is drawn next is extreme.

Those that a whole process shares (Python's, NumPy's, PyTorch's of the CPU and of every GPU in use) and those that a
model or a loss holds. A state is compared, not looked into, except for the Mersenne Twister, whose 624 words are its
next 624 numbers but for an invertible mixing: so that numbers near 0, or near 1, can be made to come next.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

LOW, HIGH = "low", "high"
_WORDS = 624
_EXTREMES = 300  # words; what is drawn after them varies, since some algorithms draw until a number suits them
_TORCH_HEADER, _TORCH_BYTES = 24, 5056  # of the state of PyTorch's generator of the CPU
_TRIES = 4096  # seeds tried to find an extreme first number


class Source(Protocol):
    """A generator."""

    def read(self) -> Any:
        """Return its state, to be compared with ``==`` and to be put back."""

    def write(self, state: Any) -> None:
        """Put a state back."""

    def extreme(self, which: str) -> None:
        """Make the next numbers small or large (``LOW``, ``HIGH``)."""

    def seed(self, number: int) -> None:
        """Begin another sequence."""


def _untempered(number: int) -> int:
    """Return the word of a Mersenne Twister's state that comes out as a number of 32 bits."""
    number ^= number >> 18
    number ^= (number << 15) & 0xEFC60000
    found = number
    for _ in range(5):
        found = number ^ ((found << 7) & 0x9D2C5680)
    number = found
    for _ in range(3):
        found = number ^ (found >> 11)
    return found & 0xFFFFFFFF


_FILLING = np.random.RandomState(0).randint(0, 1 << 32, _WORDS - _EXTREMES, dtype=np.uint64)


def extreme_words(which: str) -> list[int]:
    """Return the 624 words of a Mersenne Twister whose next numbers are 0, or 2^32 - 1."""
    word = 0 if which == LOW else _untempered(0xFFFFFFFF)
    return [word] * _EXTREMES + [int(filling) for filling in _FILLING]


class PythonSource:
    """A generator of the module ``random``."""

    def __init__(self, generator: Any = random) -> None:
        self._generator = generator

    def read(self) -> Any:
        """Return the state."""
        return self._generator.getstate()

    def write(self, state: Any) -> None:
        """Put a state back."""
        self._generator.setstate(state)

    def extreme(self, which: str) -> None:
        """Make the next numbers extreme."""
        self._generator.setstate((3, (*extreme_words(which), 0), None))

    def seed(self, number: int) -> None:
        """Begin another sequence."""
        self._generator.seed(number)


def _numpy_bits() -> Any:
    """Return what is behind NumPy's global generator."""
    return np.random.get_bit_generator()  # type: ignore[attr-defined]


def _numpy_state(words: Any, position: int) -> dict[str, Any]:
    return {"bit_generator": "MT19937", "state": {"key": np.array(words, dtype=np.uint32), "pos": position}}


class NumpyGlobalSource:
    """NumPy's generator behind ``np.random.rand`` and the like.

    Reading its state as NumPy offers it takes 40 us, as the bytes at its address half a one; so the former is kept
    until the bytes change.
    """

    def __init__(self) -> None:
        self._known: tuple[bytes, Any] = (b"", None)

    def read(self) -> Any:
        """Return the state."""
        bits = _numpy_bits()
        if not isinstance(bits, np.random.MT19937):
            return _plain(bits.state)
        content = ctypes.string_at(bits.ctypes.state_address, 4 * (_WORDS + 1))
        if content != self._known[0]:
            self._known = content, np.random.get_state(legacy=False)
        return content

    def write(self, state: Any) -> None:
        """Put a state back."""
        if not isinstance(state, bytes):
            _numpy_bits().state = state
        elif state == self._known[0]:
            np.random.set_state(self._known[1])
        else:
            numbers = np.frombuffer(state, dtype=np.uint32)
            _numpy_bits().state = _numpy_state(numbers[:_WORDS], int(numbers[_WORDS]))

    def extreme(self, which: str) -> None:
        """Make the next numbers extreme."""
        if isinstance(_numpy_bits(), np.random.MT19937):
            _numpy_bits().state = _numpy_state(extreme_words(which), 0)
        else:
            self.seed(len(which))

    def seed(self, number: int) -> None:
        """Begin another sequence."""
        np.random.seed(number)


class NumpySource:
    """A generator of NumPy that somebody holds."""

    def __init__(self, generator: np.random.Generator | np.random.RandomState) -> None:
        self._bits: Any = (
            generator.bit_generator if isinstance(generator, np.random.Generator) else generator._bit_generator
        )

    def read(self) -> Any:
        """Return the state."""
        return _plain(self._bits.state)

    def write(self, state: Any) -> None:
        """Put a state back."""
        self._bits.state = state

    def extreme(self, which: str) -> None:
        """Make the next numbers extreme."""
        if self._bits.state["bit_generator"] == "MT19937":
            self._bits.state = _numpy_state(extreme_words(which), 0)
            return
        for number in range(_TRIES):
            self.seed(number)
            state = self._bits.state
            first = np.random.Generator(self._bits).random()
            self._bits.state = state
            if (first < 1e-3) if which == LOW else (first > 1 - 1e-3):
                return

    def seed(self, number: int) -> None:
        """Begin another sequence."""
        self._bits.state = type(self._bits)(number).state


class TorchSource:
    """A generator of PyTorch, on any device."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def read(self) -> Any:
        """Return the state."""
        return bytes(self._generator.get_state().numpy())

    def write(self, state: Any) -> None:
        """Put a state back."""
        self._generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))

    def extreme(self, which: str) -> None:
        """Make the next numbers extreme."""
        if not self._set_words(which):
            self._search(which)

    def seed(self, number: int) -> None:
        """Begin another sequence."""
        self._generator.manual_seed(number)

    def _set_words(self, which: str) -> bool:
        """Write the words of a Mersenne Twister; return whether numbers come as they should."""
        state = np.frombuffer(self.read(), dtype=np.uint8).copy()
        if self._generator.device.type != "cpu" or len(state) != _TORCH_BYTES:
            return False
        state[8:12].view(np.int32)[:] = _WORDS  # how many words are left
        state[16:24].view(np.uint64)[:] = 0  # the place of the next one
        end = _TORCH_HEADER + 8 * _WORDS
        state[_TORCH_HEADER:end].view(np.uint64)[:] = extreme_words(which)
        state[end:] = 0  # normal numbers in store
        try:
            self._generator.set_state(torch.from_numpy(state))
            first = torch.rand(8, generator=self._generator, device="cpu")
            self._generator.set_state(torch.from_numpy(state))
        except RuntimeError:
            return False
        return bool((first < 1e-3).all() if which == LOW else (first > 1 - 1e-3).all())

    def _search(self, which: str) -> None:
        device = self._generator.device
        for number in range(_TRIES):
            self.seed(number)
            first = float(torch.rand((), generator=self._generator, device=device))
            self.seed(number)
            if (first < 1e-2) if which == LOW else (first > 1 - 1e-2):
                return


def _plain(state: Any) -> Any:
    """Return a state of NumPy with its arrays as lists, which ``==`` compares, and which NumPy takes back."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


_SHARED: tuple[Source, ...] = (PythonSource(), NumpyGlobalSource(), TorchSource(torch.default_generator))


def shared_sources() -> tuple[Source, ...]:
    """Return the generators that the whole process shares, those of GPUs where any is in use."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return _SHARED
    return (*_SHARED, *(TorchSource(generator) for generator in torch.cuda.default_generators))


def source_of(value: object) -> Source | None:
    """Return a generator that a model or a loss holds as a source; None for anything else."""
    if isinstance(value, torch.Generator):
        return TorchSource(value)
    if isinstance(value, (np.random.Generator, np.random.RandomState)):
        return NumpySource(value)
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return PythonSource(value)
    return None


def states(sources: Iterable[Source]) -> list[Any]:
    """Read several generators."""
    return [source.read() for source in sources]


def write_back(sources: Sequence[Source], before: Sequence[Any]) -> None:
    """Put several states back where they differ; an interrupt on the way leaves none behind."""
    try:
        _write_differing(sources, before)
    except BaseException:  # Ctrl-C: from the beginning
        _write_differing(sources, before)
        raise


def _write_differing(sources: Sequence[Source], before: Sequence[Any]) -> None:
    for source, state in zip(sources, before, strict=True):
        if source.read() != state:
            source.write(state)
