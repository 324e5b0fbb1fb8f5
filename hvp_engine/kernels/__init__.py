"""Numerical kernels, a module per family.

A family's module is a facade: it checks arguments, allocates outputs, and calls the kernels of the backend that serves
the device (`registry`): `native` (C++ on the CPU), `cuda` or `triton`, one folder each. Where none has the family,
plain PyTorch serves: the Lanczos families, the packed matrices and `softmax.softmax_tangent` have their references
(``*_ref``) in the facade; those of the operations are in `hvp_engine.ops`, which asks `registry.is_fused` before it
calls a facade.
"""
