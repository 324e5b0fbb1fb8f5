"""Thin drivers on top of the engine: models, corpora and experiments."""
