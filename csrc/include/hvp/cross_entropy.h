// Row-wise cross-entropy of logits with class indices: value, gradient and Hessian-vector product.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"
#include "hvp/isa.h"

namespace hvp {

// Row r of an output reads logits, target and statistics at r % base_rows, so that many cotangents share one
// set of logits.
struct CrossEntropyRows {
    Dtype dtype;         // of logits, cotangents and gradients; everything else is in its accumulator type
    const void* logits;  // (base_rows, classes)
    const std::int64_t* target;  // (base_rows)
    const void* class_weight;    // (classes) or null
    std::int64_t rows;
    std::int64_t base_rows;
    std::int64_t classes;
    std::int64_t ignore_index;
    double smoothing;
};

// statistics (base_rows, 2): largest logit m and 1 / sum(exp(z - m)). loss (base_rows): weighted, 0 where
// ignored.
HVP_DECLARE_KERNEL(void cross_entropy_forward(const CrossEntropyRows& in, void* statistics, void* loss))

// grad (rows, classes) = scale * d loss / d logits; grad may be the logits themselves when rows == base_rows.
HVP_DECLARE_KERNEL(void cross_entropy_backward(const CrossEntropyRows& in, const void* statistics,
                                               const void* scale, void* grad))

// For a tangent (rows, classes): product = scale * (d2 loss / d logits2) tangent and slope = d loss / d
// logits . tangent. Either output may be null; product may be the tangent itself.
HVP_DECLARE_KERNEL(bool cross_entropy_hvp(const CrossEntropyRows& in, const void* statistics,
                                          const void* scale, const void* tangent, void* product, void* slope))

}  // namespace hvp
