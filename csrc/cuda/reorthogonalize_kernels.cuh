// Device code of the batched reorthogonalisation. A task is kTaskColumns columns of one stream; a tile is the
// columns that one warp loads with 16 bytes per lane. Every dot is summed within its task in a fixed order,
// written to the workspace, and the tasks' sums are added by a second kernel: the result depends on neither
// the grid nor the time.
#pragma once

#include <type_traits>

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

constexpr int kPasses = 4;  // dots with the near rows; their update and all dots; up to two more updates

// Doubles of shared memory: dots of all rows with one or two vectors, one square sum per warp and each warp's
// part of a tile.
template <typename Q>
constexpr std::int64_t shared_doubles(std::int64_t max_count, int vectors) {
    return vectors * max_count + kProjectionWarps + kProjectionWarps * kPaddedColumns<Q>;
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
    ReorthogonalizeRule rule;
    std::int64_t num_streams;
    std::int64_t num_tasks;
    std::int64_t max_count;

    __host__ __device__ int vectors() const { return rule.postponed >= 0.0 ? 2 : 1; }
    __device__ std::int64_t near(std::int64_t count) const {
        return rule.near < 0 || rule.near > count ? count : rule.near;
    }
    __device__ double* workspace() const { return static_cast<double*>(arrays.workspace); }
    // How many passes a stream has in all.
    __device__ double* passes() const { return workspace(); }
    // What the next update subtracts from the vector and, where corrections are postponed, from the last row.
    __device__ double* second(std::int64_t s) const { return workspace() + num_streams + s * max_count; }
    __device__ double* last(std::int64_t s) const { return second(num_streams + s); }
    __device__ double* first(std::int64_t s) const {
        return arrays.coefficients + s * arrays.coefficient_stride;
    }
    // Of each task the dots of both vectors and a squared norm.
    __device__ double* partial(const ProjectionEntry& e) const {
        return second(2 * num_streams) + e.first_partial;
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

    // The last rows alone, and the last row in place of the vector.
    __device__ View last_rows(std::int64_t rows) const {
        View tail = *this;
        tail.basis += (count - rows) * row_stride;
        tail.count = static_cast<int>(rows);
        return tail;
    }
    __device__ View with_last_row() const {
        View other = *this;
        other.vector = reinterpret_cast<W*>(const_cast<Q*>(basis) + (count - 1) * row_stride);
        return other;
    }

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

// Adds the dots of all rows with the vector, over some columns, to `dots`.
template <typename Q, typename W>
__device__ void dot_all(const View<Q, W>& s, std::int64_t begin, std::int64_t end, double* dots) {
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
#pragma unroll 1
    for (int row = warp * kRows; row < s.count; row += kProjectionWarps * kRows)
        dot_rows(s, row, begin, end, dots);
}

// One task of pass `number`: subtracts what the coefficients say, then takes the dots with what is left. The
// dots of a tile follow its update at once, while it is in the cache, and so does the last row the vector.
template <typename Q, typename W>
__device__ void run_task(const ProjectionBatch& batch, std::int64_t index, std::int64_t task, int number,
                         double* dots) {
    const std::int64_t width = batch.vectors() * batch.max_count;
    double* squares = dots + width;
    double* parts = squares + kProjectionWarps;
    const ProjectionEntry& e = batch.arrays.entries[index];
    const View<Q, W> s(e.stream);
    const std::int64_t near = batch.near(s.count), passes = static_cast<std::int64_t>(batch.passes()[index]);
    const bool pairs = batch.vectors() == 2 && s.count > 0;
    const View<Q, W> updated = s.last_rows(number == 0 ? 0 : number == 1 ? near : s.count);
    const View<Q, W> measured = s.last_rows(number == 0                          ? near
                                            : number == 1 || number + 1 < passes ? s.count
                                                                                 : 0);
    const double* coefficients = number == 1 ? batch.first(index) + s.count - near : batch.second(index);
    const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize;
    const std::int64_t task_begin = (task - e.first_task) * kTaskColumns;
    const std::int64_t task_end = task_begin + kTaskColumns < s.size ? task_begin + kTaskColumns : s.size;
#pragma unroll 1
    for (std::int64_t row = thread; row < width; row += kProjectionThreads) dots[row] = 0.0;
    __syncthreads();
    double square = 0.0;
    const std::int64_t stride = number == 0 ? kTaskColumns : kTileColumns<Q>;
#pragma unroll 1
    for (std::int64_t begin = task_begin; begin < task_end; begin += stride) {
        const std::int64_t end = begin + stride < task_end ? begin + stride : task_end;
        if (number > 0) square += update_tile(updated, begin, coefficients, parts);
        if constexpr (std::is_same_v<Q, W>)
            if (pairs && number == 2)
                (void)update_tile(updated.with_last_row(), begin, batch.last(index), parts);
        dot_all(measured, begin, end, dots + (s.count - measured.count));
        if constexpr (std::is_same_v<Q, W>)
            if (pairs && number == 1) dot_all(s.with_last_row(), begin, end, dots + batch.max_count);
    }
    square = warp_sum(square);
    if (thread % kWarpSize == 0) squares[warp] = square;
    __syncthreads();
    double* partial = batch.partial(e) + (task - e.first_task);
    const std::int64_t tasks = num_tasks_of(e);
#pragma unroll 1
    for (int row = thread; row < s.count; row += kProjectionThreads) {
        partial[row * tasks] = dots[row];
        if (pairs) partial[(s.count + row) * tasks] = dots[batch.max_count + row];
    }
    if (thread == 0) {
        square = 0.0;
        for (int from = 0; from < kProjectionWarps; ++from) square += squares[from];
        partial[2 * static_cast<std::int64_t>(s.count) * tasks] = square;
    }
    __syncthreads();  // the next task of this block clears the dots
}

extern __shared__ double shared_memory[];

// Pass `number` over all tasks of streams with this pair of types that have so many.
template <typename Q, typename W>
__global__ void __launch_bounds__(kProjectionThreads, 2)
    project(ProjectionBatch batch, int number, std::int64_t type_pair) {
    for (std::int64_t task = blockIdx.x; task < batch.num_tasks; task += gridDim.x) {
        const std::int64_t index = entry_of(batch.arrays.entries, batch.num_streams, task);
        const ReorthogonalizeStream& s = batch.arrays.entries[index].stream;
        if (type_pair_of(s) == type_pair && (number < 2 || number < batch.passes()[index]))
            run_task<Q, W>(batch, index, task, number, shared_memory);
    }
}

}  // namespace cuda
}  // namespace hvp
