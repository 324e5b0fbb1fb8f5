// Softmax over contiguous rows: value, gradient, and gradient of the gradient.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"
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

// Columns [0, columns) of logits whose rows are row_stride apart, and of softmax rows described by statistics
// (rows, 2): largest logit and 1 / sum(exp(z - largest)). In place, with p = exp(z - largest): tangent (rows,
// columns) = factor p (tangent - center), and totals[r] grows by the sum of row r of it. statistics, factor
// and center are in the accumulator type, totals are doubles; rows with factor 0 become zero.
HVP_DECLARE_KERNEL(void softmax_tangent(Dtype dtype, const void* logits, std::int64_t row_stride,
                                        const void* statistics, const void* factor, const void* center,
                                        std::int64_t rows, std::int64_t columns, void* tangent,
                                        double* totals))

}  // namespace hvp
