"""Progress in a notebook: one display, changed in place, by what every kernel has."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from hvp_engine.system import notebook, progress
from hvp_engine.system.progress import ProgressReporter


class Frontend:
    """What a notebook's frontend shows: displays in order, each with what it was last changed to."""

    def __init__(self) -> None:
        self.displays: list[dict[str, str]] = []

    def display(self, bundle: dict[str, str], raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw and display_id
        place = len(self.displays)
        self.displays.append(bundle)
        return SimpleNamespace(update=lambda changed, raw: self.displays.__setitem__(place, changed))


@pytest.fixture
def frontend(monkeypatch: pytest.MonkeyPatch) -> Frontend:
    shown, ipython, display = Frontend(), ModuleType("IPython"), ModuleType("IPython.display")
    shell: Any = SimpleNamespace(kernel=object())
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    display.display = shown.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "_CHANGE_EVERY", 0.0)
    return shown


def test_progress_shows_once_and_ends_with_what_was_done(
    frontend: Frontend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notebook.in_notebook()
    with ProgressReporter("slq", 4, None) as reporter:
        for _ in range(3):
            reporter.advance(1, "<b>\x1b[31m")
        (bundle,) = frontend.displays
        assert 'value="0.7500"' in bundle["text/html"] and "&lt;b&gt;\\x1b[31m" in bundle["text/html"]
        reporter.advance(1)
    (bundle,) = frontend.displays
    assert bundle["text/plain"].startswith("slq: done in") and 'value="1.0000"' in bundle["text/html"]
    assert capsys.readouterr() == ("", "")


def test_hidden_progress_is_hidden_in_notebooks_too(frontend: Frontend) -> None:
    with ProgressReporter("slq", 4, False) as reporter:
        reporter.advance(4)
    assert not frontend.displays


def test_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not notebook.in_notebook()
    ipython = ModuleType("IPython")
    ipython.get_ipython = SimpleNamespace  # type: ignore[attr-defined]  # of a terminal: it has no kernel
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not notebook.in_notebook()
