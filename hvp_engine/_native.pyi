"""Types of the compiled extension: raw addresses and sizes; call it through hvp_engine.kernels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

abi_version: int
cuda_built: bool

# csrc/bindings/allocator.cpp
def set_malloc_thresholds(mmap_threshold: int, trim_threshold: int) -> bool: ...
def trim_heap() -> bool: ...

# csrc/bindings/runtime.cpp
def isa() -> str: ...
def num_threads() -> int: ...
def read_sum(data: int, size: int) -> int: ...
def fingerprint(pointer: int, bytes: int) -> int: ...

# csrc/bindings/reorthogonalize.cpp
def reorthogonalize(
    table: NDArray[np.int64],
    near: int,
    tolerance: float,
    postponed: float,
    coefficients: NDArray[np.float64],
    norms: NDArray[np.float64],
    lost: NDArray[np.float64],
) -> None: ...

# csrc/bindings/tridiagonal.cpp
def tridiagonal_quadrature(
    alphas: NDArray[np.float64],
    betas: NDArray[np.float64],
    steps: NDArray[np.int64],
    order: NDArray[np.int64],
    nodes: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> int: ...

# csrc/bindings/cuda_device.cpp; only where cuda_built, as all that is named cuda_...
def cuda_why_not() -> str | None: ...

# csrc/bindings/cuda_reorthogonalize.cpp
cuda_max_rows: int

class ProjectionPlan:
    workspace_bytes: int

def cuda_plan_reorthogonalize(table: NDArray[np.int64]) -> tuple[ProjectionPlan, NDArray[np.int64]]: ...
def cuda_reorthogonalize(
    plan: ProjectionPlan,
    near: int,
    tolerance: float,
    postponed: float,
    entries: int,
    coefficients: int,
    coefficient_stride: int,
    norms: int,
    lost: int,
    workspace: int,
    device: int,
    stream: int,
    /,
) -> None: ...

# csrc/bindings/cuda_lanczos_step.cpp
class RecordPlan:
    num_tasks: int

def cuda_plan_record(table: NDArray[np.int64]) -> tuple[RecordPlan, NDArray[np.int64]]: ...
def cuda_record_step(
    plan: RecordPlan,
    entries: int,
    alpha: int,
    alpha_stride: int,
    beta: int,
    lost: int,
    position: int,
    tolerance: float,
    state: Sequence[int],
    state_stride: int,
    device: int,
    stream: int,
    /,
) -> None: ...

# csrc/bindings/cuda_tridiagonal.cpp
def cuda_tridiagonal_workspace_bytes(num: int, m: int, /) -> int: ...
def cuda_tridiagonal_quadrature(num: int, m: int, arrays: Sequence[int], device: int, stream: int, /) -> None: ...

# csrc/bindings/activations.cpp; inputs are (address, batch stride) one after the other
def activation_forward(kind: int, type: int, batch: int, size: int, *operands: int) -> None: ...
def activation_backward(kind: int, type: int, batch: int, size: int, *operands: int) -> None: ...
def activation_double_backward(kind: int, type: int, batch: int, size: int, *operands: int) -> None: ...
def swiglu_forward(type: int, batch: int, size: int, *operands: int) -> None: ...
def swiglu_backward(type: int, batch: int, size: int, *operands: int) -> None: ...
def swiglu_double_backward(type: int, batch: int, size: int, *operands: int) -> None: ...

# csrc/bindings/normalize.cpp; inputs are (address, batch stride) pairs
_Input = tuple[int, int]

def normalize_chunks(rows: int) -> int: ...
def normalize_forward(
    centered: bool,
    type: int,
    parameter_type: int,
    batch: int,
    rows: int,
    size: int,
    eps: float,
    x: _Input,
    w: _Input,
    b: _Input,
    y: int,
    statistics: int,
) -> None: ...
def normalize_backward(
    centered: bool,
    type: int,
    parameter_type: int,
    batch: int,
    rows: int,
    size: int,
    x: _Input,
    w: _Input,
    statistics: _Input,
    g: _Input,
    dx: int,
    dw: int,
    db: int,
    workspace: int,
) -> None: ...
def normalize_double_backward(
    centered: bool,
    type: int,
    parameter_type: int,
    batch: int,
    rows: int,
    size: int,
    x: _Input,
    w: _Input,
    statistics: _Input,
    g: _Input,
    u: _Input,
    u_w: _Input,
    u_b: _Input,
    d_g: int,
    d_x: int,
    d_w: int,
    workspace: int,
) -> None: ...

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

def cross_entropy_forward(rows: CrossEntropyRows, statistics: int, loss: int, /) -> None: ...
def cross_entropy_backward(rows: CrossEntropyRows, statistics: int, scale: int, grad: int, /) -> None: ...
def cross_entropy_hvp(
    rows: CrossEntropyRows, statistics: int, scale: int, tangent: int, product: int, slope: int, /
) -> None: ...

# csrc/bindings/softmax.cpp
def softmax_forward(dtype: int, input: int, rows: int, columns: int, output: int, /) -> None: ...
def softmax_backward(
    dtype: int, p: int, g: int, rows: int, base_rows: int, columns: int, grad_input: int, /
) -> None: ...
def softmax_double_backward(
    dtype: int, p: int, g: int, u: int, rows: int, base_rows: int, columns: int, wrt_input: int, wrt_g: int, /
) -> None: ...
def softmax_tangent(
    dtype: int,
    logits: int,
    row_stride: int,
    statistics: int,
    factor: int,
    center: int,
    rows: int,
    columns: int,
    tangent: int,
    totals: int,
    /,
) -> None: ...

# csrc/bindings/embedding.cpp
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

# csrc/bindings/packed_symmetric.cpp
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
