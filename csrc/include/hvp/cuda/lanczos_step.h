// One recorded Lanczos step on CUDA; see device.h.
#pragma once

#include <cstdint>

#include "hvp/cuda/device.h"
#include "hvp/dtype.h"

namespace hvp {
namespace cuda {

// One stream's new vector and where vector / beta goes. An absent destination is null; a stream that gets no
// further vector has size 0. `state` is the stream's row in the state arrays, `last_step` the number of steps
// after which it ends.
struct RecordEntry {
    const void* vector;
    void* store;   // of type store_type
    void* window;  // of type vector_type
    std::int64_t size;
    std::int64_t state;
    std::int64_t last_step;
    std::int64_t first_task;
    Dtype store_type;   // float32, float64 or bfloat16
    Dtype vector_type;  // float32 or float64
};

struct LanczosState {
    double* alphas;  // (streams, stride)
    double* betas;   // (streams, stride)
    std::int64_t stride;
    double* norms;        // running estimate of the norm of T
    double* lost;         // largest loss of orthogonality so far
    std::int64_t* steps;  // steps done
    bool* live;
};

struct RecordStep {
    const RecordEntry* entries;
    std::int64_t num_streams;
    std::int64_t num_tasks;
    const double* alpha;  // alpha of entry s at s * alpha_stride
    std::int64_t alpha_stride;
    const double* beta;
    const double* lost;
    std::int64_t position;  // index of the step
    double tolerance;       // a beta of at most tolerance * norm exhausts the Krylov space
};

// Sets first_task of each entry (on the host); returns the number of tasks.
std::int64_t plan_record(RecordEntry* entries, std::int64_t num_streams);

// Writes alpha, beta and the flags of all live streams, and vector / beta to their destinations; zeros go to
// the destinations of streams that have ended. The beta of an exhausted space is rounding and not written. A
// stream whose alpha or beta is not finite ends, and shows it there.
const char* record_step(const RecordStep& step, const LanczosState& state, Queue queue);

}  // namespace cuda
}  // namespace hvp
