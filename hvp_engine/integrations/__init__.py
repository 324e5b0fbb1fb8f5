"""Spectra from inside people's training loops: loops of one's own, Hugging Face's Trainer, Lightning.

:mod:`hvp_engine.integrations.hugging_face` and :mod:`hvp_engine.integrations.lightning` need these packages, and are
imported where they are wanted.
"""

from __future__ import annotations

from hvp_engine.integrations.logger import SpectrumLogger

__all__ = ["SpectrumLogger"]
