// Batched ragged reorthogonalisation on CUDA; see device.h.
#pragma once

#include <cstdint>

#include "hvp/cuda/device.h"
#include "hvp/reorthogonalize.h"

namespace hvp {
namespace cuda {

constexpr std::int64_t kMaxRows = 2304;  // what the shared memory of a block holds

// An entry of the table of streams.
struct ProjectionEntry {
    ReorthogonalizeStream stream;
    std::int64_t first_task;
    std::int64_t first_partial;
};

struct ProjectionPlan {
    std::int64_t num_streams;
    std::int64_t num_tasks;
    std::int64_t max_count;
    std::int64_t workspace_bytes;
    std::int64_t type_pairs;  // the bit of each pair of basis type and vector type that occurs

    bool has_mixed_types() const {
        constexpr std::int64_t equal = std::int64_t{1} << 3 | 1;  // both fp32, both fp64
        return (type_pairs & ~equal) != 0;
    }
};

// Fills the table (on the host; the caller copies it to the device) and says what the batch needs.
ProjectionPlan plan_projection(const ReorthogonalizeStream* streams, std::int64_t num_streams,
                               ProjectionEntry* entries);

struct ProjectionArrays {
    const ProjectionEntry* entries;
    double* coefficients;  // (streams, coefficient_stride), written whole: zero where there is no row
    std::int64_t coefficient_stride;
    double* norms;
    double* lost;
    void* workspace;
};

// Does what hvp::reorthogonalize does. Equal inputs give equal bits, on every device of one architecture.
const char* reorthogonalize(const ProjectionPlan& plan, const ReorthogonalizeRule& rule,
                            const ProjectionArrays& arrays, Queue queue);

}  // namespace cuda
}  // namespace hvp
