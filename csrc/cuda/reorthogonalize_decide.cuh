// What follows each pass of the batched reorthogonalisation: the tasks' sums are added, and the device
// decides which streams have another pass.
#pragma once

#include "reorthogonalize_kernels.cuh"

namespace hvp {
namespace cuda {

// Adds one row's sums of all tasks; the result is in every lane.
__device__ inline double total_of_tasks(const double* partial, std::int64_t tasks) {
    double sum = 0.0;
    for (std::int64_t t = threadIdx.x % kWarpSize; t < tasks; t += kWarpSize) sum += partial[t];
    return warp_sum(sum);
}

// Largest magnitude and sum of squares of some numbers; a NaN among them shows in both.
struct Size {
    double largest = 0.0, squares = 0.0;
    __device__ void add(const Size& other) {
        if (other.largest > largest || other.largest != other.largest) largest = other.largest;
        squares += other.squares;
    }
    __device__ void add(double x) { add({x < 0.0 ? -x : x, x * x}); }
};

// What one warp, or all of them, know of the dots of one stream.
struct Found {
    Size vector, last;
    double known = 0.0;  // of the last row's components, which the vector was not measured without
    __device__ void add(const Found& other) {
        vector.add(other.vector);
        last.add(other.last);
        known += other.known;
    }
};

__device__ inline double relative(double size, double norm) { return norm == 0.0 ? 0.0 : size / norm; }

// Adds the dots of all tasks up: what the next update subtracts. The sum over all rows is in every thread.
__device__ inline Found take_dots(const ProjectionBatch& batch, std::int64_t index, bool pairs,
                                  Found* of_warps) {
    const ProjectionEntry& e = batch.arrays.entries[index];
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize,
              lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int count = static_cast<int>(e.stream.count);
    const std::int64_t tasks = num_tasks_of(e);
    const double* partial = batch.partial(e);
    Found found;
    for (int row = warp; row < count; row += kProjectionWarps) {
        const double dot = total_of_tasks(partial + row * tasks, tasks);
        const double other =
            pairs && row + 1 < count ? total_of_tasks(partial + (count + row) * tasks, tasks) : 0.0;
        found.vector.add(dot);
        found.last.add(other);
        found.known += other * dot;
        if (lane == 0) batch.second(index)[row] = dot;
        if (lane == 0 && pairs) batch.last(index)[row] = other;
    }
    if (lane == 0) of_warps[warp] = found;
    __syncthreads();
    found = {};
    for (int from = 0; from < kProjectionWarps; ++from) found.add(of_warps[from]);
    __syncthreads();
    return found;
}

// Decides what follows the first sweep over all rows: returns how many passes there are in all.
__device__ inline int passes_after(const ProjectionBatch& batch, std::int64_t index, const Found& found,
                                   double norm) {
    const ReorthogonalizeRule& rule = batch.rule;
    const std::int64_t count = batch.arrays.entries[index].stream.count;
    const bool pairs = batch.vectors() == 2, once = batch.near(count) == count;
    const double share = relative(sqrt(found.vector.squares), norm);
    const bool enough = pairs ? share <= rule.postponed && sqrt(found.last.squares) <= rule.tolerance
                              : share <= rule.tolerance;
    const double largest = pairs ? found.last.largest : relative(found.vector.largest, norm);
    // What is taken out leaves as much of it as the basis is orthogonal.
    if (threadIdx.x == 0) batch.arrays.lost[index] = enough || once ? largest : largest * rule.tolerance;
    return enough ? 2 : once || share <= kLargeShare ? 3 : 4;
}

// What is known after pass `number`, of one stream per block.
__global__ void __launch_bounds__(kProjectionThreads) finish_pass(ProjectionBatch batch, int number) {
    Found* of_warps = reinterpret_cast<Found*>(shared_memory);
    const int thread = static_cast<int>(threadIdx.x);
    for (std::int64_t index = blockIdx.x; index < batch.num_streams; index += gridDim.x) {
        const ProjectionEntry& e = batch.arrays.entries[index];
        const std::int64_t count = e.stream.count, tasks = num_tasks_of(e), near = batch.near(count);
        double* first = batch.first(index);
        int passes = number < 2 ? kPasses : static_cast<int>(batch.passes()[index]);
        if (number == 0) {
            for (std::int64_t row = thread / kWarpSize; row < batch.arrays.coefficient_stride;
                 row += kProjectionWarps) {
                const bool is_near = row >= count - near && row < count;
                const double dot = is_near ? total_of_tasks(batch.partial(e) + row * tasks, tasks) : 0.0;
                if (thread % kWarpSize == 0) first[row] = dot;
            }
            continue;
        }
        if (number >= passes) continue;
        const double norm = sqrt(total_of_tasks(batch.partial(e) + 2 * count * tasks, tasks));
        const bool pairs = batch.vectors() == 2 && number == 1;
        if (number == 1 || number + 1 < passes) {
            const Found found = take_dots(batch, index, pairs, of_warps);
            if (number == 1) passes = passes_after(batch, index, found, norm);
            if (thread == 0 && number == 2) batch.arrays.lost[index] = relative(found.vector.largest, norm);
            if (thread == 0 && pairs && count > 0) batch.second(index)[count - 1] -= found.known;
            __syncthreads();
            for (std::int64_t row = thread; row < count && passes > 2; row += kProjectionThreads)
                first[row] += batch.second(index)[row];
        }
        if (thread == 0) {
            batch.arrays.norms[index] = norm;
            if (number == 1) batch.passes()[index] = passes;
        }
        __syncthreads();
    }
}

}  // namespace cuda
}  // namespace hvp
