"""The command ``hvp-engine``."""

from __future__ import annotations

from hvp_engine.cli.commands import app, main

__all__ = ["app", "main"]
