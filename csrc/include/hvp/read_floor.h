// A plain read of a large array: the floor that memory-bound kernels are measured against.
#pragma once

#include <cstdint>

#include "hvp/isa.h"

namespace hvp {

// Returns the sum of the bit patterns of `size` floats, read once by all threads.
HVP_DECLARE_KERNEL(std::int64_t read_sum(const float* data, std::int64_t size))

}  // namespace hvp
