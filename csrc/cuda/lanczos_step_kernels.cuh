// Device code of one recorded Lanczos step: the decision per stream, then the new basis rows.
#pragma once

#include "hvp/cuda/lanczos_step.h"
#include "warp.cuh"

namespace hvp {
namespace cuda {

constexpr int kRecordThreads = 256;
constexpr std::int64_t kRecordColumns = 16 * kRecordThreads;  // of one task

// One thread per stream.
__global__ void __launch_bounds__(kRecordThreads) decide_step(RecordStep step, LanczosState state) {
    const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (index >= step.num_streams) return;
    const RecordEntry& e = step.entries[index];
    if (!state.live[e.state]) return;
    const double alpha = step.alpha[index * step.alpha_stride], beta = step.beta[index];
    const std::int64_t at = e.state * state.stride + step.position;
    const double size = fabs(alpha) + beta + (step.position > 0 ? state.betas[at - 1] : 0.0);
    const double norm = size > state.norms[e.state] ? size : state.norms[e.state];
    state.norms[e.state] = norm;
    state.alphas[at] = alpha;
    state.steps[e.state] = step.position + 1;
    const double lost = step.lost[index];
    if (!(lost <= state.lost[e.state])) state.lost[e.state] = lost;  // a NaN shows
    const bool finite = fabs(alpha) + fabs(beta) <= 1.7976931348623157e308;
    const bool exhausted = finite && !(beta > step.tolerance * norm);
    if (!exhausted) state.betas[at] = beta;  // also one that is not finite: the host finds it there
    if (!finite || exhausted || step.position + 1 >= e.last_step) state.live[e.state] = false;
}

template <typename T>
__device__ inline void store_scaled(void* to, std::int64_t column, double value) {
    if (to != nullptr) narrow(value, static_cast<T*>(to)[column]);
}

template <typename W>
__device__ void scale_columns(const RecordEntry& e, std::int64_t begin, bool live, double beta) {
    const std::int64_t end = begin + kRecordColumns < e.size ? begin + kRecordColumns : e.size;
    for (std::int64_t column = begin + threadIdx.x; column < end; column += kRecordThreads) {
        W rounded;
        narrow(live ? static_cast<double>(static_cast<const W*>(e.vector)[column]) / beta : 0.0, rounded);
        const double value = static_cast<double>(rounded);
        store_scaled<W>(e.window, column, value);
        if (e.store_type == Dtype::float32) store_scaled<float>(e.store, column, value);
        if (e.store_type == Dtype::bfloat16) store_scaled<Bf16>(e.store, column, value);
        if (e.store_type == Dtype::float64) store_scaled<double>(e.store, column, value);
    }
}

// Writes vector / beta, or zeros for a stream that has ended, to the stream's destinations.
__global__ void __launch_bounds__(kRecordThreads) scale_vectors(RecordStep step, LanczosState state) {
    for (std::int64_t task = blockIdx.x; task < step.num_tasks; task += gridDim.x) {
        const std::int64_t index = entry_of(step.entries, step.num_streams, task);
        const RecordEntry& e = step.entries[index];
        const std::int64_t begin = (task - e.first_task) * kRecordColumns;
        if (e.vector_type == Dtype::float32) {
            scale_columns<float>(e, begin, state.live[e.state], step.beta[index]);
        } else {
            scale_columns<double>(e, begin, state.live[e.state], step.beta[index]);
        }
    }
}

}  // namespace cuda
}  // namespace hvp
