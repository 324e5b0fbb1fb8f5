// Softmax over contiguous rows: value, gradient, and gradient of the gradient.
#pragma once

#include <cstdint>

#include "hvp/element.h"
#include "hvp/isa.h"

namespace hvp {

HVP_DECLARE_KERNEL(void softmax_forward(Dtype dtype, const void* input, std::int64_t rows,
                                        std::int64_t columns, void* output))

// grad_input = p (g - <p, g>); row r of g reads row r % base_rows of the probabilities p.
HVP_DECLARE_KERNEL(void softmax_backward(Dtype dtype, const void* p, const void* g, std::int64_t rows,
                                         std::int64_t base_rows, std::int64_t columns, void* grad_input))

// The gradient's own gradients for a cotangent u of grad_input: wrt the input of the softmax and wrt g.
// Either output may be null.
HVP_DECLARE_KERNEL(void softmax_double_backward(Dtype dtype, const void* p, const void* g, const void* u,
                                                std::int64_t rows, std::int64_t base_rows,
                                                std::int64_t columns, void* wrt_input, void* wrt_g))

}  // namespace hvp
