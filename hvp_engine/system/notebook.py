"""Progress in notebooks: one display that is changed in place, whatever frontend shows it, without widgets."""

from __future__ import annotations

import html
import importlib
import sys
from typing import Any


def in_notebook() -> bool:
    """Say whether this process is the kernel of a notebook: there is no terminal, and a display can be changed."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookBar:
    """A bar and a line of text, shown once and updated; a saved notebook has their last state."""

    def __init__(self) -> None:
        """Prepare; nothing shows before ``show``."""
        self._handle: Any = None

    def show(self, share: float, text: str) -> None:
        """Show or change the bar.

        Args:
            share: Of the work that is done, from 0 to 1.
            text: What stands beside it.
        """
        line = html.escape(text)
        bundle = {
            "text/plain": text,
            "text/html": f'<progress value="{share:.4f}" max="1"></progress> <code>{line}</code>',
        }
        if self._handle is None:
            display: Any = importlib.import_module("IPython.display").display  # a notebook has it, others need not
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
