// Batched ragged reorthogonalisation: classical Gram-Schmidt of many vectors at once, as often as is needed.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"
#include "hvp/isa.h"

namespace hvp {

// One stream: `count` basis rows of `size` elements, and the vector to be made orthogonal to them in place.
struct ReorthogonalizeStream {
    void* basis;  // read, but for its last row where corrections are postponed
    void* vector;
    std::int64_t row_stride;  // elements (of scaled8: bytes) between the starts of two basis rows
    std::int64_t size;
    std::int64_t count;
    Dtype basis_type;   // float32, float64, bfloat16 or scaled8
    Dtype vector_type;  // float32 or float64
};

// How often the basis is read, see hvp_engine.kernels.reorthogonalize. The first pass takes the components
// along the last `near` rows out and measures those along all; a second pass follows where these are too
// large.
struct ReorthogonalizeRule {
    std::int64_t near;  // negative: all
    double tolerance;   // what may stay in a vector, relative to its norm
    double
        postponed;  // what may stay in it until it is the last row of the basis; negative: no more than that

    bool postpones() const { return postponed >= 0.0; }
    std::int64_t first_rows(std::int64_t count) const { return near < 0 || near > count ? count : near; }
};

// A second pass that removes more than this share of a vector is followed by a third.
constexpr double kLargeShare = 0.1;

// Writes, per stream: coefficients (row s starts at s * coefficient_stride; the first `count` entries are
// written), the norm of the vector afterwards, and the loss of orthogonality that was found.
// Returns false when the work space cannot be allocated; nothing is changed then.
HVP_DECLARE_KERNEL(bool reorthogonalize(const ReorthogonalizeStream* streams, std::int64_t num_streams,
                                        const ReorthogonalizeRule& rule, double* coefficients,
                                        std::int64_t coefficient_stride, double* norms, double* lost))

}  // namespace hvp
