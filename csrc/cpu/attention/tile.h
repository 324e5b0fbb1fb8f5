// What the attention kernels share: division of work, packing, score strips, write-back. Compiled per
// instruction set.
//
// A task is one (batch entry, key head) and a share of its query blocks; one thread does it from start to
// end, so that the sums over queries have a fixed order. A block is kBlock query rows of one head. Scores of
// a block against all its keys form a strip, stored transposed (keys x queries): row statistics are then sums
// over the strip's rows, which vectorise, and only the block's own rows need a transposed copy. Strips make
// memory linear in the keys.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "element.h"
#include "gemm.h"
#include "grains.h"
#include "hvp/attention.h"
#include "parallel.h"
#include "simd_math.h"

namespace hvp {
namespace HVP_ISA {
namespace {

using Index = std::int64_t;

constexpr Index kBlock = 64;  // query rows of a block: the row stride of strips
constexpr Index kTile = 96;   // keys handled together: a strip's tile stays in the first-level cache
constexpr Index kMinTasks =
    16;  // heads are split by query blocks below this: fixed, for the same bits anywhere
constexpr Index kMinBlocks = 4;  // query blocks of a share: each task packs its keys and values again
constexpr Index kAhead = 8;      // rows prefetched ahead while packing
constexpr Index kAlign = 16;     // packed rows are padded to this many elements

inline Index smaller(Index a, Index b) { return a < b ? a : b; }
inline Index larger(Index a, Index b) { return a > b ? a : b; }
inline Index round_up(Index n, Index unit) { return (n + unit - 1) / unit * unit; }

// One head of a tensor.
struct View {
    const char* data;
    Index row_stride;
    Index column_stride;
    Dtype type;
};

inline Index bytes_of(Dtype type) {
    switch (type) {
        case Dtype::float32:
            return 4;
        case Dtype::float64:
            return 8;
        case Dtype::bfloat16:
            return 2;
        default:
            return 1;
    }
}

inline View head_view(const AttentionProblem& p, const AttentionTensor& t, Dtype type, Index batch,
                      Index head) {
    Index offset = head * t.head_stride;
    for (int d = p.batch_dims - 1; d >= 0; --d) {
        offset += batch % p.batch_sizes[d] * t.batch_strides[d];
        batch /= p.batch_sizes[d];
    }
    return View{static_cast<const char*>(t.data) + offset * bytes_of(type), t.row_stride, t.column_stride,
                type};
}

template <class Source, class T>
void pack_rows_of(const View& v, Index first, Index rows, Index columns, T* to, Index stride) {
    for (Index i = 0; i < rows; ++i) {
        const Source* from = reinterpret_cast<const Source*>(v.data) + (first + i) * v.row_stride;
        T* row = to + i * stride;
        if (v.column_stride == 1) {
            // Rows of one head lie far apart, out of the hardware prefetchers' sight.
            const char* ahead = reinterpret_cast<const char*>(from + kAhead * v.row_stride);
            for (Index e = 0; e < columns * static_cast<Index>(sizeof(Source)); e += 64)
                __builtin_prefetch(ahead + e);
#pragma omp simd
            for (Index e = 0; e < columns; ++e) row[e] = static_cast<T>(load(from + e));
        } else {
            for (Index e = 0; e < columns; ++e) row[e] = static_cast<T>(load(from + e * v.column_stride));
        }
        for (Index e = columns; e < stride; ++e) row[e] = T(0);
    }
}

// Copies rows [first, first + rows) in the accumulation type, padded with zeros to `stride` columns.
template <class T>
void pack_rows(const View& v, Index first, Index rows, Index columns, T* to, Index stride) {
    switch (v.type) {
        case Dtype::float32:
            return pack_rows_of<float>(v, first, rows, columns, to, stride);
        case Dtype::float64:
            return pack_rows_of<double>(v, first, rows, columns, to, stride);
        default:
            return pack_rows_of<Bf16>(v, first, rows, columns, to, stride);
    }
}

template <class Target, class T>
void unpack_rows_to(const View& v, Index first, Index rows, Index columns, const T* from, Index stride) {
    for (Index i = 0; i < rows; ++i) {
        Target* row = reinterpret_cast<Target*>(const_cast<char*>(v.data)) + (first + i) * v.row_stride;
        for (Index e = 0; e < columns; ++e) store(row + e * v.column_stride, from[i * stride + e]);
    }
}

template <class T>
void unpack_rows(const View& v, Index first, Index rows, Index columns, const T* from, Index stride) {
    switch (v.type) {
        case Dtype::float32:
            return unpack_rows_to<float>(v, first, rows, columns, from, stride);
        case Dtype::float64:
            return unpack_rows_to<double>(v, first, rows, columns, from, stride);
        default:
            return unpack_rows_to<Bf16>(v, first, rows, columns, from, stride);
    }
}

// (rows x columns) with row stride `stride` -> (columns x kBlock), zeros in the lanes past `rows`.
template <class T>
void transpose(const T* from, Index stride, Index rows, Index columns, T* to) {
    for (Index e = 0; e < columns; ++e) {
        for (Index i = 0; i < rows; ++i) to[e * kBlock + i] = from[i * stride + e];
        for (Index i = rows; i < kBlock; ++i) to[e * kBlock + i] = T(0);
    }
}

template <class T>
void fill_zero(T* to, Index n) {
    for (Index i = 0; i < n; ++i) to[i] = T(0);
}

// Sizes and the division of work. Only how many threads do it depends on more than the problem.
struct Plan {
    Index width, value_width;  // padded
    Index group;               // query heads per key head
    Index blocks;              // query blocks of one head
    Index heads;               // (batch entry, key head) pairs
    Index splits;              // tasks per pair
    int threads;

    Plan(const AttentionProblem& p, double grain) {
        width = round_up(p.width, kAlign);
        value_width = round_up(p.value_width, kAlign);
        group = p.heads / p.key_heads;
        blocks = (p.queries + kBlock - 1) / kBlock;
        heads = p.key_heads;
        for (int d = 0; d < p.batch_dims; ++d) heads *= p.batch_sizes[d];
        splits = larger(1, smaller(blocks * group / kMinBlocks, (kMinTasks + heads - 1) / larger(heads, 1)));
        const double work = static_cast<double>(heads) * static_cast<double>(group * p.queries) *
                            static_cast<double>(p.keys) * static_cast<double>(p.width + p.value_width);
        threads = shares_of(tasks(), p.causal ? work / 2 : work, grain);
    }
    Index tasks() const { return heads * splits; }
};

// One query block of a task.
struct Block {
    Index batch, head, first, rows;
    Index lanes;  // rows, padded to whole vectors
    Index keys;   // keys that any of its rows sees
};

template <class T>
Block block_of(const AttentionProblem& p, const Plan& plan, Index pair, Index position) {
    Block b;
    b.batch = pair / p.key_heads;
    b.head = pair % p.key_heads * plan.group + position / plan.blocks;
    b.first = position % plan.blocks * kBlock;
    b.rows = smaller(kBlock, p.queries - b.first);
    b.lanes = round_up(b.rows, kLanes<T>);
    b.keys = p.causal ? smaller(p.keys, b.first + b.rows) : p.keys;
    return b;
}

// Hands out aligned pieces of one allocation; with a null base it only counts.
template <class T>
struct Arena {
    T* base;
    Index used = 0;
    explicit Arena(T* memory) : base(memory) {}
    T* take(Index n) {
        T* piece = base == nullptr ? nullptr : base + used;
        used += round_up(larger(n, 1), kAlign);
        return piece;
    }
};

template <class M, class T>
void add_mask(const View& mask, const Block& b, Index first_key, Index keys, T* tile) {
    for (Index j = 0; j < keys; ++j) {
        const M* column = reinterpret_cast<const M*>(mask.data) + b.first * mask.row_stride +
                          (first_key + j) * mask.column_stride;
        T* scores = tile + j * kBlock;
        for (Index i = 0; i < b.rows; ++i) scores[i] += static_cast<T>(load(column + i * mask.row_stride));
    }
}

template <class T>
void apply_boolean(const View& mask, const Block& b, Index first_key, Index keys, T* tile) {
    for (Index j = 0; j < keys; ++j) {
        const char* column = mask.data + b.first * mask.row_stride + (first_key + j) * mask.column_stride;
        T* scores = tile + j * kBlock;
        for (Index i = 0; i < b.rows; ++i) {
            if (column[i * mask.row_stride] == 0) scores[i] = -static_cast<T>(__builtin_inf());
        }
    }
}

// tile = scale * key query' + mask for keys [first_key, first_key + keys) of a block; unseen keys are -inf.
template <class T>
void scores_of(const AttentionProblem& p, const Block& b, const T* key, Index stride, const T* query_t,
               Index first_key, Index keys, T* tile) {
    multiply<T>(keys, b.lanes, p.width, {key + first_key * stride, stride, 1}, query_t, kBlock, tile, kBlock,
                false);
    const T scale = static_cast<T>(p.scale);
    for (Index j = 0; j < keys; ++j) {
        T* scores = tile + j * kBlock;
#pragma omp simd
        for (Index i = 0; i < b.lanes; ++i) scores[i] *= scale;
    }
    if (p.mask.data != nullptr) {
        const View mask = head_view(p, p.mask, p.mask_type, b.batch, b.head);
        switch (p.mask_type) {
            case Dtype::float32:
                add_mask<float>(mask, b, first_key, keys, tile);
                break;
            case Dtype::float64:
                add_mask<double>(mask, b, first_key, keys, tile);
                break;
            case Dtype::bfloat16:
                add_mask<Bf16>(mask, b, first_key, keys, tile);
                break;
            default:
                apply_boolean(mask, b, first_key, keys, tile);
        }
    }
    if (!p.causal) return;
    for (Index j = larger(0, b.first + 1 - first_key); j < keys; ++j) {
        const Index hidden = smaller(b.lanes, first_key + j - b.first);
        for (Index i = 0; i < hidden; ++i) tile[j * kBlock + i] = -static_cast<T>(__builtin_inf());
    }
}

// Loads a block's row statistics; lanes past its rows get weight zero, so that they contribute nothing.
template <class T>
void load_statistics(const AttentionProblem& p, const Block& b, T* largest, T* weight) {
    const View v =
        head_view(p, p.statistics, sizeof(T) == 8 ? Dtype::float64 : Dtype::float32, b.batch, b.head);
    const T* from = reinterpret_cast<const T*>(v.data) + b.first * v.row_stride;
    for (Index i = 0; i < kBlock; ++i) {
        largest[i] = i < b.rows ? from[i * v.row_stride] : T(0);
        weight[i] = i < b.rows ? from[i * v.row_stride + v.column_stride] : T(0);
    }
}

// tile: scores -> probabilities.
template <class T>
void probabilities(const Block& b, const T* largest, const T* weight, Index keys, T* tile) {
    for (Index j = 0; j < keys; ++j) {
        T* scores = tile + j * kBlock;
#pragma omp simd
        for (Index i = 0; i < b.lanes; ++i) scores[i] = simd::exp(scores[i] - largest[i]) * weight[i];
    }
}

// total += sum over the tile's keys of a * b, summed within the tile first to bound the rounding error.
template <class T>
void add_dots(const Block& b, const T* x, const T* y, Index keys, T* total) {
    T part[kBlock] = {};
    for (Index j = 0; j < keys; ++j) {
        const T* u = x + j * kBlock;
        const T* v = y + j * kBlock;
#pragma omp simd
        for (Index i = 0; i < b.lanes; ++i) part[i] += u[i] * v[i];
    }
    for (Index i = 0; i < b.lanes; ++i) total[i] += part[i];
}

// s -> scale * p * (s - mean): the gradient of the scores from that of the probabilities.
template <class T>
void score_gradient(const Block& b, const T* p, const T* mean, T scale, Index keys, T* s) {
    for (Index j = 0; j < keys * kBlock; j += kBlock) {
#pragma omp simd
        for (Index i = 0; i < b.lanes; ++i) s[j + i] = scale * p[j + i] * (s[j + i] - mean[i]);
    }
}

// Memory of a call: one piece per thread, and one per task for partial sums when heads are split.
template <class T>
struct Memory {
    T* threads = nullptr;
    T* tasks = nullptr;
    Index per_thread, per_task;

    Memory(const Plan& plan, Index thread_elements, Index task_elements)
        : per_thread(round_up(thread_elements, kAlign)), per_task(plan.splits > 1 ? task_elements : 0) {
        const Index total = per_thread * plan.threads + per_task * plan.tasks();
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, static_cast<std::size_t>(larger(total, 1)) * sizeof(T)) != 0) return;
        threads = static_cast<T*>(memory);
        tasks = threads + per_thread * plan.threads;
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { free(threads); }
};

}  // namespace
}  // namespace HVP_ISA
}  // namespace hvp
