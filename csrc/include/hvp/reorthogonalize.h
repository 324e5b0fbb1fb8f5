// Batched ragged reorthogonalisation: two-pass classical Gram-Schmidt of many vectors at once.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"
#include "hvp/isa.h"

namespace hvp {

// One stream: `count` basis rows of `size` elements, and the vector to be made orthogonal to them in place.
struct ReorthogonalizeStream {
    const void* basis;
    void* vector;
    std::int64_t row_stride;  // elements (of scaled8: bytes) between the starts of two basis rows
    std::int64_t size;
    std::int64_t count;
    Dtype basis_type;   // float32, float64, bfloat16 or scaled8
    Dtype vector_type;  // float32 or float64
};

// Writes, per stream: coefficients (row s starts at s * coefficient_stride; the first `count` entries are
// written), the norm of the vector afterwards, and the loss of orthogonality that the second pass found.
// Returns false when the work space cannot be allocated; nothing is changed then.
HVP_DECLARE_KERNEL(bool reorthogonalize(const ReorthogonalizeStream* streams, std::int64_t num_streams,
                                        double* coefficients, std::int64_t coefficient_stride, double* norms,
                                        double* lost))

}  // namespace hvp
