"""Types of the compiled extension: raw addresses and sizes; call it through hvp_engine.kernels."""

abi_version: int

# csrc/bindings/runtime.cpp
def isa() -> str: ...
def num_threads() -> int: ...

# csrc/bindings/cross_entropy.cpp
class CrossEntropyRows:
    def __init__(
        self,
        dtype: int,
        logits: int,
        target: int,
        class_weight: int,
        rows: int,
        base_rows: int,
        classes: int,
        ignore_index: int,
        smoothing: float,
    ) -> None: ...

def cross_entropy_forward(rows: CrossEntropyRows, norm: int, loss: int, /) -> None: ...
def cross_entropy_backward(rows: CrossEntropyRows, norm: int, scale: int, grad: int, /) -> None: ...
def cross_entropy_hvp(
    rows: CrossEntropyRows, norm: int, scale: int, tangent: int, product: int, slope: int, /
) -> None: ...

# csrc/bindings/losses.cpp
def softmax_forward(dtype: int, input: int, rows: int, columns: int, output: int, /) -> None: ...
def softmax_backward(
    dtype: int, p: int, g: int, rows: int, base_rows: int, columns: int, grad_input: int, /
) -> None: ...
def softmax_double_backward(
    dtype: int, p: int, g: int, u: int, rows: int, base_rows: int, columns: int, wrt_input: int, wrt_g: int, /
) -> None: ...
def embedding_backward(
    dtype: int,
    order: int,
    sorted_rows: int,
    tokens: int,
    grad: int,
    table_rows: int,
    columns: int,
    table: int,
    /,
) -> None: ...
def pair_products(
    dtype: int, weight: int, center: int, rows: int, d: int, first: int, last: int, products: int, /
) -> None: ...
def pack_covariance(
    moment_dtype: int,
    packed_dtype: int,
    moments: int,
    mean: int,
    tokens: int,
    d: int,
    first: int,
    last: int,
    packed: int,
    /,
) -> None: ...
def packed_symmetric_matvec(
    dtype: int, packed: int, vectors: int, count: int, tokens: int, d: int, out: int, /
) -> None: ...
