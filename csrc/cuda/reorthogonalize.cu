// Two-pass classical Gram-Schmidt for many streams: the dots of the first pass; its update fused, tile by
// tile, with the dots of the second pass; the second update fused with the norm. Each is one launch over all
// streams, followed by a small one that adds the tasks' sums.
#include <cuda_runtime.h>

#include "launch.h"
#include "reorthogonalize_kernels.cuh"

namespace hvp {
namespace cuda {

ProjectionPlan plan_projection(const ReorthogonalizeStream* streams, std::int64_t num_streams,
                               ProjectionEntry* entries) {
    ProjectionPlan plan = {num_streams, 0, 0, 0, 0};
    std::int64_t partials = 0;
    for (std::int64_t s = 0; s < num_streams; ++s) {
        const ReorthogonalizeStream& stream = streams[s];
        entries[s] = {stream, plan.num_tasks, partials};
        const std::int64_t tasks = (stream.size + kTaskColumns - 1) / kTaskColumns;
        plan.num_tasks += tasks;
        partials += tasks * (stream.count + 1);
        if (stream.count > plan.max_count) plan.max_count = stream.count;
        plan.type_pairs |= std::int64_t{1} << type_pair_of(stream);
    }
    plan.workspace_bytes =
        static_cast<std::int64_t>(sizeof(double)) * (num_streams * plan.max_count + partials);
    return plan;
}

namespace {

constexpr int kBlocksPerProcessor = 2048 / kProjectionThreads;

template <typename Q, typename W>
cudaError_t launch_pass(Pass pass, const ProjectionBatch& batch, std::int64_t type_pair, unsigned blocks,
                        const Queue& queue) {
    const std::int64_t bytes =
        static_cast<std::int64_t>(sizeof(double)) * shared_doubles<Q>(batch.max_count, pass);
    return launch(project<Q, W>, blocks, kProjectionThreads, bytes, queue, batch, pass, type_pair);
}

using LaunchPass = cudaError_t (*)(Pass, const ProjectionBatch&, std::int64_t, unsigned, const Queue&);
// By basis type and vector type, in the order of their numbers.
constexpr LaunchPass kLaunchPass[] = {launch_pass<float, float>,  launch_pass<float, double>,
                                      launch_pass<double, float>, launch_pass<double, double>,
                                      launch_pass<Bf16, float>,   launch_pass<Bf16, double>};
constexpr std::int64_t kTypePairs = 6;

}  // namespace

const char* reorthogonalize(const ProjectionPlan& plan, const ProjectionArrays& arrays, Queue queue) {
    if (plan.max_count > kMaxRows) return "a basis has more rows than the shared memory of a block holds";
    const DeviceGuard guard(queue);
    const ProjectionBatch batch = {arrays, plan.num_streams, plan.num_tasks, plan.max_count};
    unsigned task_blocks = 0, stream_blocks = 0;
    cudaError_t error = guard.error();
    if (error == cudaSuccess) error = grid_size(queue, plan.num_tasks, kBlocksPerProcessor, task_blocks);
    if (error == cudaSuccess) error = grid_size(queue, plan.num_streams, kBlocksPerProcessor, stream_blocks);
    for (const Pass pass : {Pass::dots, Pass::update_and_dots, Pass::update}) {
        for (std::int64_t pair = 0; pair < kTypePairs && error == cudaSuccess; ++pair)
            if ((plan.type_pairs >> pair & 1) != 0)
                error = kLaunchPass[pair](pass, batch, pair, task_blocks, queue);
        if (error == cudaSuccess)
            error = launch(finish_pass, stream_blocks, kProjectionThreads, kProjectionWarps * sizeof(double),
                           queue, batch, pass);
    }
    return text_of(error);
}

}  // namespace cuda
}  // namespace hvp
