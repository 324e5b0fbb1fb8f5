// How tensors reach the kernels of the twice-differentiable operations.
#pragma once

#include <cstdint>

namespace hvp {

// An input made of equal groups, each contiguous; the stride between groups is 0 where all share the same
// values.
struct Operand {
    const void* data;
    std::int64_t batch_stride;
};

}  // namespace hvp
