// The kernels on CUDA. All addresses are device addresses unless said otherwise; work is queued on the given
// stream of the given device, and nothing waits for it. Functions that queue work return null, or the text of
// an error.
#pragma once

#include <cstdint>

#include "hvp/reorthogonalize.h"

namespace hvp {
namespace cuda {

using StreamHandle = void*;  // a cudaStream_t

struct Queue {
    int device;
    StreamHandle stream;
};

// Null when the driver finds a device, otherwise the reason why not.
const char* why_not();

// ---- Reorthogonalisation
// -------------------------------------------------------------------------------------

constexpr std::int64_t kMaxRows = 3072;  // what the shared memory of a block holds

// An entry of the table of streams; `stream.count` is the largest count that the call may meet.
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
    std::int64_t type_pairs;  // bit basis_type * 2 + vector_type is set for each pair that occurs
};

// Fills the table (on the host; the caller copies it to the device) and says what the batch needs.
ProjectionPlan plan_projection(const ReorthogonalizeStream* streams, std::int64_t num_streams,
                               ProjectionEntry* entries);

struct ProjectionArrays {
    const ProjectionEntry* entries;
    const std::int64_t* counts;  // rows in use per stream, at most `stream.count`
    double* coefficients;        // (streams, coefficient_stride), written whole: zero where there is no row
    std::int64_t coefficient_stride;
    double* norms;
    double* lost;
    void* workspace;
};

// Does what hvp::reorthogonalize does. Equal inputs give equal bits, on every device of one architecture.
const char* reorthogonalize(const ProjectionPlan& plan, const ProjectionArrays& arrays, Queue queue);

// ---- One recorded Lanczos step
// -------------------------------------------------------------------------------

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
    BasisType store_type;
    VectorType vector_type;
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
// the destinations of streams that have ended. A stream whose alpha or beta is not finite ends, and shows it
// there.
const char* record_step(const RecordStep& step, const LanczosState& state, Queue queue);

// ---- Tridiagonal quadrature
// ----------------------------------------------------------------------------------

std::int64_t tridiagonal_workspace_bytes(std::int64_t num, std::int64_t m);

struct TridiagonalArrays {
    const double* alphas;       // (num, m)
    const double* betas;        // (num, m - 1)
    const std::int64_t* steps;  // (num), in 1..m
    double* nodes;              // (num, m), ascending
    double* weights;            // (num, m)
    std::int64_t* failed;       // one number: the first matrix that did not converge, or -1
    void* workspace;
};

// Does what hvp::tridiagonal_quadrature does, one thread per matrix.
const char* tridiagonal_quadrature(std::int64_t num, std::int64_t m, const TridiagonalArrays& arrays,
                                   Queue queue);

}  // namespace cuda
}  // namespace hvp
