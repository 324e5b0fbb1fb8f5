"""Checks as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from validation.report import Check

from .runner import Emit


class Checks:
    """Emits checks; remembers those that failed, so that the stage can fail at its end."""

    def __init__(self, emit: Emit) -> None:
        self._emit, self._failed = emit, list[str]()

    def take(self, name: str, checks: Callable[[], Iterator[Check]]) -> None:
        """Emit what a family of checks yields; an exception is a failed check, and the next family goes on."""
        try:
            for check in checks():
                self._emit(
                    what=check.name,
                    ok=check.ok,
                    error=check.error,
                    limit=check.limit,
                    **({"note": check.note} if check.note else {}),
                )
                if check.fatal and not check.ok:
                    self._failed.append(check.name)
        except Exception as error:
            self._failed.append(name)
            self._emit(what=name, ok=False, note=f"{type(error).__name__}: {str(error).strip()[:1500]}")

    def verdict(self) -> None:
        """Raise AssertionError where a check failed, with the names."""
        if self._failed:
            raise AssertionError(f"{len(self._failed)} failed: {', '.join(self._failed)}"[:400])
