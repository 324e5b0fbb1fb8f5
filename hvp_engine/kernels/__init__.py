"""Numerical kernels: every one has a plain PyTorch reference beside its native version."""
