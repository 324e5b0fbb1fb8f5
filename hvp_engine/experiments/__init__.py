"""Thin drivers on top of the engine: models, data and experiments; :func:`run` runs one by name."""

from __future__ import annotations

from hvp_engine.experiments.running import run

__all__ = ["run"]
