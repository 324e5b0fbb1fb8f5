// Classical Gram-Schmidt for many streams, as often as is needed; see hvp/reorthogonalize.h. Each pass is one
// launch over all streams, followed by a small one that adds the tasks' sums and decides, on the device,
// which streams have another pass. The blocks of the others leave at once.
#include <cuda_runtime.h>

#include "launch.h"
#include "reorthogonalize_decide.cuh"

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
        partials += tasks * (2 * stream.count + 1);
        if (stream.count > plan.max_count) plan.max_count = stream.count;
        plan.type_pairs |= std::int64_t{1} << type_pair_of(stream);
    }
    plan.workspace_bytes =
        static_cast<std::int64_t>(sizeof(double)) * (num_streams * (2 * plan.max_count + 1) + partials);
    return plan;
}

namespace {

constexpr int kBlocksPerProcessor = 2048 / kProjectionThreads;

template <typename Q, typename W>
cudaError_t launch_pass(int number, const ProjectionBatch& batch, std::int64_t type_pair, unsigned blocks,
                        const Queue& queue) {
    const std::int64_t bytes =
        static_cast<std::int64_t>(sizeof(double)) * shared_doubles<Q>(batch.max_count, batch.vectors());
    return launch(project<Q, W>, blocks, kProjectionThreads, bytes, queue, batch, number, type_pair);
}

using LaunchPass = cudaError_t (*)(int, const ProjectionBatch&, std::int64_t, unsigned, const Queue&);
// By basis type and vector type, in the order of their numbers.
constexpr LaunchPass kLaunchPass[] = {launch_pass<float, float>,  launch_pass<float, double>,
                                      launch_pass<double, float>, launch_pass<double, double>,
                                      launch_pass<Bf16, float>,   launch_pass<Bf16, double>};
constexpr std::int64_t kTypePairs = 6;

}  // namespace

const char* reorthogonalize(const ProjectionPlan& plan, const ReorthogonalizeRule& rule,
                            const ProjectionArrays& arrays, Queue queue) {
    if (plan.max_count > kMaxRows) return "a basis has more rows than the shared memory of a block holds";
    const DeviceGuard guard(queue);
    const ProjectionBatch batch = {arrays, rule, plan.num_streams, plan.num_tasks, plan.max_count};
    unsigned task_blocks = 0, stream_blocks = 0;
    cudaError_t error = guard.error();
    if (error == cudaSuccess) error = grid_size(queue, plan.num_tasks, kBlocksPerProcessor, task_blocks);
    if (error == cudaSuccess) error = grid_size(queue, plan.num_streams, kBlocksPerProcessor, stream_blocks);
    const int passes =
        rule.near < 0 ? kPasses - 1 : kPasses;  // with all rows in the first one, two are enough
    for (int number = 0; number < passes; ++number) {
        const bool is_empty = number == 0 && rule.near == 0;
        for (std::int64_t pair = 0; pair < kTypePairs && error == cudaSuccess && !is_empty; ++pair)
            if ((plan.type_pairs >> pair & 1) != 0)
                error = kLaunchPass[pair](number, batch, pair, task_blocks, queue);
        if (error == cudaSuccess)
            error = launch(finish_pass, stream_blocks, kProjectionThreads,
                           static_cast<std::int64_t>(kProjectionWarps * sizeof(Found)), queue, batch, number);
    }
    return text_of(error);
}

}  // namespace cuda
}  // namespace hvp
