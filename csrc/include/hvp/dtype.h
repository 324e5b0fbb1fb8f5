// The element types of tensors.
#pragma once

#include <cstdint>

namespace hvp {

// The numbers are part of the interface to Python (hvp_engine/kernels/tensors.py). 64 bits wide, as all else
// in the tables that describe streams.
enum class Dtype : std::int64_t { float32 = 0, float64 = 1, bfloat16 = 2, boolean = 3, scaled8 = 4 };

// A stored bfloat16; arithmetic is done in wider types.
struct Bf16 {
    std::uint16_t bits;
};

// An 8-bit number in a row of such, which is kept as ceil(size / kScaledBlock) blocks of them, the last one
// filled up with zeros, and then one fp32 scale per block; see hvp_engine/kernels/scaled_rows.py.
struct Scaled8 {
    std::int8_t bits;
};
constexpr std::int64_t kScaledBlock = 128;

constexpr std::int64_t scaled_blocks(std::int64_t size) { return (size + kScaledBlock - 1) / kScaledBlock; }
// Bytes of a row, without the gap to the next one.
constexpr std::int64_t scaled_row_bytes(std::int64_t size) {
    return scaled_blocks(size) * (kScaledBlock + static_cast<std::int64_t>(sizeof(float)));
}

}  // namespace hvp
