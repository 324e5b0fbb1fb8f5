"""Hessian-vector products, batched Lanczos and stochastic Lanczos quadrature for neural networks."""

from __future__ import annotations

__version__ = "0.1.0"
