"""How many Triton kernels a stage compiled, and how many it found in the cache."""

from __future__ import annotations

from typing import Any


class CompileCounter:
    """Counts what Triton's compiler is asked for, from the moment it is made."""

    def __init__(self) -> None:
        self._compiled, self._cached, self._seconds = 0, 0, 0.0
        try:
            from triton import knobs
        except ImportError:  # no Triton, or one before 3.5, which tells nobody
            return
        knobs.compilation.listener = self._heard

    def _heard(self, *, times: Any, cache_hit: bool, **_: Any) -> None:
        self._compiled += not cache_hit
        self._cached += cache_hit
        self._seconds += 0.0 if cache_hit else times.total / 1e6

    def take(self) -> dict[str, Any]:
        """Return the counts since the last call."""
        found = {
            "compiled": self._compiled,
            "from_cache": self._cached,
            "compile_seconds": round(self._seconds, 1),
        }
        self._compiled, self._cached, self._seconds = 0, 0, 0.0
        return found
