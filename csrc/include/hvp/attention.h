// Scaled dot-product attention: forward, backward and backward-of-backward, each in memory linear in the
// lengths.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"
#include "hvp/isa.h"

namespace hvp {

constexpr int kAttentionBatchDims = 6;

// A strided tensor (batch dimensions..., heads, rows, columns); strides in elements, 0 where it is broadcast.
// A null address means that the tensor is absent: an input counts as zero, an output is not wanted.
struct AttentionTensor {
    void* data = nullptr;
    std::int64_t batch_strides[kAttentionBatchDims] = {};
    std::int64_t head_stride = 0;
    std::int64_t row_stride = 0;
    std::int64_t column_stride = 0;
};

// softmax(scale * query key' + mask) value. Query head h attends with key head h / (heads / key_heads).
struct AttentionProblem {
    int batch_dims = 0;
    std::int64_t batch_sizes[kAttentionBatchDims] = {};
    std::int64_t heads = 0;
    std::int64_t key_heads = 0;
    std::int64_t queries = 0;
    std::int64_t keys = 0;
    std::int64_t width = 0;        // columns of query and key
    std::int64_t value_width = 0;  // columns of value
    double scale = 1.0;
    bool causal = false;  // key j is seen by query i when j <= i
    Dtype type = Dtype::float32;
    Dtype mask_type = Dtype::boolean;  // boolean: true = attend; otherwise added to the scores
    AttentionTensor query, key, value, mask;
    // Columns 0 and 1: each row's largest score, and 1 / sum exp(score - largest), or 0 where no key is seen.
    // Accumulation type (double for float64, else float). The two are kept apart because their logarithmic
    // sum loses the second one in rounding when a mask adds a large negative number to a whole row.
    AttentionTensor statistics;
};

struct AttentionGradients {
    AttentionTensor grad_out;                          // given
    AttentionTensor grad_query, grad_key, grad_value;  // outputs
};

// With A = scale (tangent_query key' + query tangent_key'), the outputs are the derivatives with respect to
// query, key, value and grad_out of <tangent_query, grad_query> + <tangent_key, grad_key> + <tangent_value,
// grad_value>. out_grad_out alone is the forward-mode derivative of attention and needs no grad_out.
struct AttentionSecond {
    AttentionTensor grad_out, tangent_query, tangent_key, tangent_value;  // given
    AttentionTensor out_query, out_key, out_value, out_grad_out;          // outputs
};

// All return false, with nothing computed, when there is no memory for the workspace. The same inputs give
// the same bits at every thread count.
HVP_DECLARE_KERNEL(bool attention_forward(const AttentionProblem&, const AttentionTensor& out))
HVP_DECLARE_KERNEL(bool attention_backward(const AttentionProblem&, const AttentionGradients&))
HVP_DECLARE_KERNEL(bool attention_second(const AttentionProblem&, const AttentionSecond&))

}  // namespace hvp
