// The element types of tensors.
#pragma once

#include <cstdint>

namespace hvp {

// The numbers are part of the interface to Python (hvp_engine/kernels/tensors.py). 64 bits wide, as all else
// in the tables that describe streams.
enum class Dtype : std::int64_t { float32 = 0, float64 = 1, bfloat16 = 2, boolean = 3 };

// A stored bfloat16; arithmetic is done in wider types.
struct Bf16 {
    std::uint16_t bits;
};

}  // namespace hvp
