"""Types of the compiled extension: raw addresses and sizes; call it through hvp_engine.kernels."""

from collections.abc import Sequence

abi_version: int

# csrc/bindings/runtime.cpp
def isa() -> str: ...
def num_threads() -> int: ...

# csrc/bindings/attention.cpp
_Tensor = tuple[int, Sequence[int]] | None

def attention_forward(
    sizes: Sequence[int],
    scale: float,
    causal: bool,
    types: tuple[int, int],
    inputs: Sequence[_Tensor],
    out: _Tensor,
) -> None: ...
def attention_backward(
    sizes: Sequence[int],
    scale: float,
    causal: bool,
    types: tuple[int, int],
    inputs: Sequence[_Tensor],
    grad_out: _Tensor,
    grad_query: _Tensor,
    grad_key: _Tensor,
    grad_value: _Tensor,
) -> None: ...
def attention_second(
    sizes: Sequence[int],
    scale: float,
    causal: bool,
    types: tuple[int, int],
    inputs: Sequence[_Tensor],
    given: Sequence[_Tensor],
    outputs: Sequence[_Tensor],
) -> None: ...
