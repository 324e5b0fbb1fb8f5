// Device code of the batched reorthogonalisation. A task is kTaskColumns columns of one stream; a tile is the
// columns that one warp loads with 16 bytes per lane. Every dot is summed within its task in a fixed order,
// written to the workspace, and the tasks' sums are added by a second kernel: the result depends on neither
// the grid nor the time.
#pragma once

#include "hvp/cuda/reorthogonalize.h"
#include "warp.cuh"

namespace hvp {
namespace cuda {

constexpr int kProjectionWarps = 8;
constexpr int kProjectionThreads = kProjectionWarps * kWarpSize;
constexpr std::int64_t kTaskColumns = 4096;
constexpr int kRows = 4;  // rows that a warp has in flight

template <typename Q>
constexpr int kPackColumns = 16 / static_cast<int>(sizeof(Q));
template <typename Q>
constexpr int kTileColumns = kWarpSize * kPackColumns<Q>;
// One column of padding per pack keeps the lanes of a warp on different banks.
template <typename Q>
constexpr int kPaddedColumns = kTileColumns<Q> + kWarpSize;
template <typename Q>
__device__ constexpr int padded(int column) {
    return column + column / kPackColumns<Q>;
}

enum class Pass : int { dots, update_and_dots, update };

// Doubles of shared memory: dots of all rows, one square sum per warp and, for updates, each warp's part of a
// tile.
template <typename Q>
constexpr std::int64_t shared_doubles(std::int64_t max_count, Pass pass) {
    return max_count + kProjectionWarps + (pass == Pass::dots ? 0 : kProjectionWarps * kPaddedColumns<Q>);
}

// What one lane loads at once, as words that become numbers when they are used.
template <typename T, int N>
struct Pack {
    static constexpr int kWords = N * static_cast<int>(sizeof(T)) / 4;
    unsigned words[kWords];

    __device__ explicit Pack(const T* from) {
        if constexpr (kWords == 2) {
            const uint2 pair = *reinterpret_cast<const uint2*>(from);
            words[0] = pair.x, words[1] = pair.y;
        } else {
#pragma unroll
            for (int i = 0; i < kWords; i += 4) {
                const uint4 four = reinterpret_cast<const uint4*>(from)[i / 4];
                words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
            }
        }
    }
    __device__ auto get(int v) const {
        if constexpr (sizeof(T) == 2) {
            return __uint_as_float(v % 2 == 0 ? words[v / 2] << 16 : words[v / 2] & 0xffff0000u);
        } else if constexpr (sizeof(T) == 4) {
            return __uint_as_float(words[v]);
        } else {
            return __hiloint2double(static_cast<int>(words[2 * v + 1]), static_cast<int>(words[2 * v]));
        }
    }
};

// The precision of products and of sums of a few of them. What a bf16 basis takes out of an fp32 vector is
// rounded more coarsely than fp32 by the basis itself; everything else is worth fp64.
template <typename Q, typename W>
struct ShortSum {
    using Type = double;
};
template <>
struct ShortSum<Bf16, float> {
    using Type = float;
};

__host__ __device__ inline std::int64_t type_pair_of(const ReorthogonalizeStream& s) {
    return static_cast<std::int64_t>(s.basis_type) * 2 + static_cast<std::int64_t>(s.vector_type);
}

struct ProjectionBatch {
    ProjectionArrays arrays;
    std::int64_t num_streams;
    std::int64_t num_tasks;
    std::int64_t max_count;

    __device__ double* second(std::int64_t s) const {
        return static_cast<double*>(arrays.workspace) + s * max_count;
    }
    __device__ double* first(std::int64_t s) const {
        return arrays.coefficients + s * arrays.coefficient_stride;
    }
    __device__ double* partial(const ProjectionEntry& e) const {
        return static_cast<double*>(arrays.workspace) + num_streams * max_count + e.first_partial;
    }
};

__device__ inline std::int64_t num_tasks_of(const ProjectionEntry& e) {
    return (e.stream.size + kTaskColumns - 1) / kTaskColumns;
}

// One stream. In a tile where 16-byte loads are possible a lane owns kPackColumns adjacent columns, otherwise
// every 32nd one, so that the lanes' loads are adjacent.
template <typename Q, typename W>
struct View {
    const Q* basis;
    W* vector;
    std::int64_t row_stride, size;
    int count;
    bool aligned;

    __device__ explicit View(const ReorthogonalizeStream& s)
        : basis(static_cast<const Q*>(s.basis)),
          vector(static_cast<W*>(s.vector)),
          row_stride(s.row_stride),
          size(s.size),
          count(static_cast<int>(s.count)) {
        const auto addresses =
            reinterpret_cast<std::uintptr_t>(s.basis) | reinterpret_cast<std::uintptr_t>(s.vector);
        aligned = (addresses | static_cast<std::uintptr_t>(row_stride) * sizeof(Q)) % 16 == 0;
    }

    __device__ bool packed(std::int64_t tile) const { return aligned && tile + kTileColumns<Q> <= size; }

    // Row `row` + r; past the last one, the last one.
    __device__ const Q* row(int row, int r) const {
        return basis + (row + r < count ? row + r : count - 1) * row_stride;
    }
};

// The lane's columns of rows row .. row + kRows - 1, all loads on their way at once.
template <typename Q>
struct FourRows {
    static_assert(kRows == 4, "written for four rows");
    Pack<Q, kPackColumns<Q>> pack[kRows];

    template <typename W>
    __device__ FourRows(const View<Q, W>& s, int row, std::int64_t column)
        : pack{Pack<Q, kPackColumns<Q>>(s.row(row, 0) + column),
               Pack<Q, kPackColumns<Q>>(s.row(row, 1) + column),
               Pack<Q, kPackColumns<Q>>(s.row(row, 2) + column),
               Pack<Q, kPackColumns<Q>>(s.row(row, 3) + column)} {}
};

// Adds a tile's products of kRows rows with the vector, of this lane, to `sums`.
template <typename Q, typename W>
__device__ inline void dot_tile(const View<Q, W>& s, int row, std::int64_t tile, int lane, double* sums) {
    using Short = typename ShortSum<Q, W>::Type;
    Short shorts[kRows] = {};
    if (s.packed(tile)) {
        const std::int64_t column = tile + lane * kPackColumns<Q>;
        const FourRows<Q> rows(s, row, column);
        const Pack<W, kPackColumns<Q>> w(s.vector + column);
#pragma unroll
        for (int v = 0; v < kPackColumns<Q>; ++v)
#pragma unroll
            for (int r = 0; r < kRows; ++r)
                shorts[r] += static_cast<Short>(rows.pack[r].get(v)) * static_cast<Short>(w.get(v));
    } else {
        const std::int64_t end = tile + kTileColumns<Q> < s.size ? tile + kTileColumns<Q> : s.size;
#pragma unroll 1
        for (std::int64_t column = tile + lane; column < end; column += kWarpSize)
#pragma unroll
            for (int r = 0; r < kRows; ++r)
                shorts[r] +=
                    static_cast<Short>(widen(s.row(row, r)[column])) * static_cast<Short>(s.vector[column]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r] += shorts[r];
}

// Adds the dots of rows row .. row + kRows - 1 with the vector, over the tiles in [begin, end), to `dots`.
template <typename Q, typename W>
__device__ void dot_rows(const View<Q, W>& s, int row, std::int64_t begin, std::int64_t end, double* dots) {
    static_assert(kRows == 4, "the exchange below is written for four rows");
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    double sums[kRows] = {};
#pragma unroll 1
    for (std::int64_t tile = begin; tile < end; tile += kTileColumns<Q>) dot_tile(s, row, tile, lane, sums);
    // Half of the lanes give away half of their sums, twice; what is left is one sum per quarter of the warp.
    const bool upper = (lane & 16) != 0, odd = (lane & 8) != 0;
    const double low =
        (upper ? sums[2] : sums[0]) + __shfl_xor_sync(kAllLanes, upper ? sums[0] : sums[2], 16);
    const double high =
        (upper ? sums[3] : sums[1]) + __shfl_xor_sync(kAllLanes, upper ? sums[1] : sums[3], 16);
    double sum = (odd ? high : low) + __shfl_xor_sync(kAllLanes, odd ? low : high, 8);
    for (int distance = 4; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
    const int own = row + lane / 8;
    if (lane % 8 == 0 && own < s.count) dots[own] += sum;
}

// Writes the sum of this warp's rows, times their coefficients, to its part of the tile.
template <typename Q, typename W>
__device__ inline void combine_rows(const View<Q, W>& s, std::int64_t tile, const double* coefficients,
                                    int warp, int lane, double* part) {
    using Short = typename ShortSum<Q, W>::Type;
    constexpr int kColumns = kPackColumns<Q>;
    constexpr int kGroup = kProjectionWarps * kRows;
    const auto coefficient = [&](int row, int r) {
        return row + r < s.count ? static_cast<Short>(coefficients[row + r]) : Short{0};
    };
    if (s.packed(tile)) {
        double sums[kColumns] = {};
#pragma unroll 1
        for (int row = warp * kRows; row < s.count; row += kGroup) {
            const FourRows<Q> rows(s, row, tile + lane * kColumns);
            Short shorts[kColumns] = {};
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const Short c = coefficient(row, r);
#pragma unroll
                for (int v = 0; v < kColumns; ++v) shorts[v] += c * static_cast<Short>(rows.pack[r].get(v));
            }
#pragma unroll
            for (int v = 0; v < kColumns; ++v) sums[v] += shorts[v];
        }
#pragma unroll
        for (int v = 0; v < kColumns; ++v) part[padded<Q>(lane * kColumns + v)] = sums[v];
        return;
    }
#pragma unroll 1
    for (int column = lane; column < kTileColumns<Q> && tile + column < s.size; column += kWarpSize) {
        double sum = 0.0;
#pragma unroll 1
        for (int row = warp * kRows; row < s.count; row += kGroup) {
            Short shorts = 0;
#pragma unroll
            for (int r = 0; r < kRows; ++r)
                shorts += coefficient(row, r) * static_cast<Short>(widen(s.row(row, r)[tile + column]));
            sum += shorts;
        }
        part[padded<Q>(column)] = sum;
    }
}

// Subtracts the rows' components from one tile of the vector; returns this thread's part of its squared norm.
template <typename Q, typename W>
__device__ double update_tile(const View<Q, W>& s, std::int64_t tile, const double* coefficients,
                              double* parts) {
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize;
    combine_rows(s, tile, coefficients, warp, thread % kWarpSize, parts + warp * kPaddedColumns<Q>);
    __syncthreads();
    double square = 0.0;
    if (thread < kTileColumns<Q> && tile + thread < s.size) {
        double total = 0.0;
#pragma unroll
        for (int from = 0; from < kProjectionWarps; ++from)
            total += parts[from * kPaddedColumns<Q> + padded<Q>(thread)];
        W rounded;
        narrow(static_cast<double>(s.vector[tile + thread]) - total, rounded);
        s.vector[tile + thread] = rounded;
        square = static_cast<double>(rounded) * static_cast<double>(rounded);
    }
    __syncthreads();  // the tile is read by all warps next, and `parts` is written again
    return square;
}

// One task: subtracts what the coefficients say, then takes the dots with what is left, as the pass asks. The
// dots of a tile follow its update at once, while it is in the cache.
template <typename Q, typename W>
__device__ void run_task(const ProjectionBatch& batch, std::int64_t index, std::int64_t task, Pass pass,
                         double* dots) {
    double* squares = dots + batch.max_count;
    double* parts = squares + kProjectionWarps;
    const ProjectionEntry& e = batch.arrays.entries[index];
    const View<Q, W> s(e.stream);
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize;
    const std::int64_t task_begin = (task - e.first_task) * kTaskColumns;
    const std::int64_t task_end = task_begin + kTaskColumns < s.size ? task_begin + kTaskColumns : s.size;
    const double* coefficients = pass == Pass::update ? batch.second(index) : batch.first(index);
#pragma unroll 1
    for (int row = thread; row < s.count; row += kProjectionThreads) dots[row] = 0.0;
    __syncthreads();
    double square = 0.0;
    const std::int64_t stride = pass == Pass::dots ? kTaskColumns : kTileColumns<Q>;
#pragma unroll 1
    for (std::int64_t begin = task_begin; begin < task_end; begin += stride) {
        const std::int64_t end = begin + stride < task_end ? begin + stride : task_end;
        if (pass != Pass::dots) square += update_tile(s, begin, coefficients, parts);
#pragma unroll 1
        for (int row = warp * kRows; pass != Pass::update && row < s.count; row += kProjectionWarps * kRows)
            dot_rows(s, row, begin, end, dots);
    }
    square = warp_sum(square);
    if (thread % kWarpSize == 0) squares[warp] = square;
    __syncthreads();
    double* partial = batch.partial(e) + (task - e.first_task);
    const std::int64_t tasks = num_tasks_of(e);
#pragma unroll 1
    for (int row = thread; row < s.count; row += kProjectionThreads) partial[row * tasks] = dots[row];
    if (thread == 0) {
        square = 0.0;
        for (int from = 0; from < kProjectionWarps; ++from) square += squares[from];
        partial[s.count * tasks] = square;
    }
    __syncthreads();  // the next task of this block clears the dots
}

extern __shared__ double shared_memory[];

// One pass over all tasks of streams with this pair of types.
template <typename Q, typename W>
__global__ void __launch_bounds__(kProjectionThreads, 2)
    project(ProjectionBatch batch, Pass pass, std::int64_t type_pair) {
    for (std::int64_t task = blockIdx.x; task < batch.num_tasks; task += gridDim.x) {
        const std::int64_t index = entry_of(batch.arrays.entries, batch.num_streams, task);
        const ReorthogonalizeStream& s = batch.arrays.entries[index].stream;
        if (type_pair_of(s) == type_pair) run_task<Q, W>(batch, index, task, pass, shared_memory);
    }
}

// Adds one row's sums of all tasks; the result is in every lane.
__device__ inline double total_of_tasks(const double* partial, std::int64_t tasks) {
    double sum = 0.0;
    for (std::int64_t t = threadIdx.x % kWarpSize; t < tasks; t += kWarpSize) sum += partial[t];
    return warp_sum(sum);
}

// What is known after a pass, of one stream per block.
__global__ void __launch_bounds__(kProjectionThreads) finish_pass(ProjectionBatch batch, Pass pass) {
    double* largest_of_warps = shared_memory;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize, lane = thread % kWarpSize;
    for (std::int64_t index = blockIdx.x; index < batch.num_streams; index += gridDim.x) {
        const ProjectionEntry& e = batch.arrays.entries[index];
        const int count = static_cast<int>(e.stream.count);
        const std::int64_t tasks = num_tasks_of(e);
        const double* partial = batch.partial(e);
        double* first = batch.first(index);
        double largest = 0.0;
        for (int row = warp; pass != Pass::update && row < count; row += kProjectionWarps) {
            const double dot = total_of_tasks(partial + row * tasks, tasks);
            const double magnitude = dot < 0.0 ? -dot : dot;
            if (magnitude > largest || magnitude != magnitude) largest = magnitude;  // a NaN stays
            if (lane == 0 && pass == Pass::dots) first[row] = dot;
            if (lane == 0 && pass == Pass::update_and_dots) {
                batch.second(index)[row] = dot;
                first[row] += dot;
            }
        }
        if (pass == Pass::dots) {
            for (int row = count + thread; row < batch.arrays.coefficient_stride; row += kProjectionThreads)
                first[row] = 0.0;
            continue;
        }
        if (lane == 0) largest_of_warps[warp] = largest;
        __syncthreads();
        if (warp == 0) {
            const double norm = sqrt(total_of_tasks(partial + e.stream.count * tasks, tasks));
            for (int from = 0; from < kProjectionWarps; ++from) {
                const double other = largest_of_warps[from];
                if (other > largest || other != other) largest = other;
            }
            if (lane == 0 && pass == Pass::update) batch.arrays.norms[index] = norm;
            if (lane == 0 && pass == Pass::update_and_dots)
                batch.arrays.lost[index] = norm == 0.0 ? 0.0 : largest / norm;
        }
        __syncthreads();
    }
}

}  // namespace cuda
}  // namespace hvp
