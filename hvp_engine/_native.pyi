"""Types of the compiled extension: raw addresses and sizes; call it through hvp_engine.kernels."""

abi_version: int

# csrc/bindings/runtime.cpp
def isa() -> str: ...
def num_threads() -> int: ...
