// Keeps a Lanczos step on the device: what the host would decide from alpha and beta is decided there.
#include <cuda_runtime.h>

#include "lanczos_step_kernels.cuh"
#include "launch.h"

namespace hvp {
namespace cuda {

std::int64_t plan_record(RecordEntry* entries, std::int64_t num_streams) {
    std::int64_t tasks = 0;
    for (std::int64_t s = 0; s < num_streams; ++s) {
        entries[s].first_task = tasks;
        tasks += (entries[s].size + kRecordColumns - 1) / kRecordColumns;
    }
    return tasks;
}

const char* record_step(const RecordStep& step, const LanczosState& state, Queue queue) {
    const DeviceGuard guard(queue);
    unsigned blocks = 0;
    cudaError_t error = guard.error();
    if (error == cudaSuccess) error = grid_size(queue, step.num_tasks, 2048 / kRecordThreads, blocks);
    const auto deciding = static_cast<unsigned>((step.num_streams + kRecordThreads - 1) / kRecordThreads);
    if (error == cudaSuccess) error = launch(decide_step, deciding, kRecordThreads, 0, queue, step, state);
    if (error == cudaSuccess && blocks > 0)
        error = launch(scale_vectors, blocks, kRecordThreads, 0, queue, step, state);
    return text_of(error);
}

}  // namespace cuda
}  // namespace hvp
