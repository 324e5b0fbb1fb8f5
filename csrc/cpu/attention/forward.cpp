// Attention: the forward pass. See tile.h for the division of work.
#include "tile.h"

namespace hvp {
namespace HVP_ISA {
namespace {

template <class T>
struct ForwardWorkspace {
    Arena<T> arena;
    T *key, *value;            // packed, of the current task
    T *query, *query_t, *out;  // of the current block
    T* strip;

    ForwardWorkspace(const AttentionProblem& p, const Plan& plan, T* memory) : arena(memory) {
        key = arena.take(p.keys * plan.width);
        value = arena.take(p.keys * plan.value_width);
        query = arena.take(kBlock * plan.width);
        query_t = arena.take(kBlock * plan.width);
        out = arena.take(kBlock * plan.value_width);
        strip = arena.take(p.keys * kBlock);
    }
};

template <class T>
void row_maxima(const Block& b, Index keys, const T* tile, T* largest) {
    for (Index j = 0; j < keys; ++j) {
        const T* scores = tile + j * kBlock;
#pragma omp simd
        for (Index i = 0; i < b.lanes; ++i) largest[i] = scores[i] > largest[i] ? scores[i] : largest[i];
    }
}

// tile: scores -> exp(score - largest); their sum goes to `total`.
template <class T>
void exponentials(const Block& b, const T* largest, Index keys, T* tile, T* total) {
    T part[kBlock] = {};
    for (Index j = 0; j < keys; ++j) {
        T* scores = tile + j * kBlock;
#pragma omp simd
        for (Index i = 0; i < b.lanes; ++i) {
            scores[i] = simd::exp(scores[i] - largest[i]);
            part[i] += scores[i];
        }
    }
    for (Index i = 0; i < b.lanes; ++i) total[i] += part[i];
}

template <class T>
void forward_block(const AttentionProblem& p, const Plan& plan, const Block& b, const AttentionTensor& out,
                   ForwardWorkspace<T>& w) {
    pack_rows(head_view(p, p.query, p.type, b.batch, b.head), b.first, b.rows, p.width, w.query, plan.width);
    transpose(w.query, plan.width, b.rows, p.width, w.query_t);

    T largest[kBlock], total[kBlock] = {}, weight[kBlock];
    const T infinity = static_cast<T>(__builtin_inf());
    for (Index i = 0; i < kBlock; ++i) largest[i] = -infinity;
    for (Index j = 0; j < b.keys; j += kTile) {
        const Index keys = smaller(kTile, b.keys - j);
        scores_of(p, b, w.key, plan.width, w.query_t, j, keys, w.strip + j * kBlock);
        row_maxima(b, keys, w.strip + j * kBlock, largest);
    }
    for (Index i = 0; i < kBlock; ++i) largest[i] = largest[i] == -infinity ? T(0) : largest[i];
    for (Index j = 0; j < b.keys; j += kTile) {
        const Index keys = smaller(kTile, b.keys - j);
        T* tile = w.strip + j * kBlock;
        exponentials(b, largest, keys, tile, total);
        multiply<T>(b.rows, plan.value_width, keys, {tile, 1, kBlock}, w.value + j * plan.value_width,
                    plan.value_width, w.out, plan.value_width, j > 0);
    }
    if (b.keys == 0) fill_zero(w.out, b.rows * plan.value_width);
    for (Index i = 0; i < b.rows; ++i) {
        weight[i] = total[i] == T(0) ? T(0) : T(1) / total[i];
        for (Index e = 0; e < plan.value_width; ++e) w.out[i * plan.value_width + e] *= weight[i];
    }
    unpack_rows(head_view(p, out, p.type, b.batch, b.head), b.first, b.rows, p.value_width, w.out,
                plan.value_width);

    const Dtype kept = sizeof(T) == 8 ? Dtype::float64 : Dtype::float32;
    const View statistics = head_view(p, p.statistics, kept, b.batch, b.head);
    T* row = reinterpret_cast<T*>(const_cast<char*>(statistics.data)) + b.first * statistics.row_stride;
    for (Index i = 0; i < b.rows; ++i) {
        row[i * statistics.row_stride] = largest[i];
        row[i * statistics.row_stride + statistics.column_stride] = weight[i];
    }
}

template <class T>
bool forward(const AttentionProblem& p, const AttentionTensor& out) {
    const Plan plan(p, grain::kAttentionForward);
    const Memory<T> memory(plan, ForwardWorkspace<T>(p, plan, nullptr).arena.used, 0);
    if (memory.threads == nullptr) return false;
    Queue queue(plan.tasks());
    deal(plan.threads, [&](int number) {
        ForwardWorkspace<T> w(p, plan, memory.threads + number * memory.per_thread);
        for (Index task; queue.take(task);) {
            const Index pair = task / plan.splits, batch = pair / p.key_heads, head = pair % p.key_heads;
            pack_rows(head_view(p, p.key, p.type, batch, head), 0, p.keys, p.width, w.key, plan.width);
            pack_rows(head_view(p, p.value, p.type, batch, head), 0, p.keys, p.value_width, w.value,
                      plan.value_width);
            for (Index at = task % plan.splits; at < plan.blocks * plan.group; at += plan.splits) {
                forward_block(p, plan, block_of<T>(p, plan, pair, at), out, w);
            }
        }
    });
    return true;
}

}  // namespace

bool attention_forward(const AttentionProblem& p, const AttentionTensor& out) {
    return p.type == Dtype::float64 ? forward<double>(p, out) : forward<float>(p, out);
}

}  // namespace HVP_ISA
}  // namespace hvp
