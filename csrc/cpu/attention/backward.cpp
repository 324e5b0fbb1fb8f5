// Attention: the backward pass. With P the probabilities and D = rowsum(P * dP):
//   dP = grad_out value',  dS = P * (dP - D),
//   grad_query = scale dS key,  grad_key = scale dS' query,  grad_value = P' grad_out.
#include "keys.h"

namespace hvp {
namespace HVP_ISA {
namespace {

template <class T>
struct BackwardWorkspace {
    Arena<T> arena;
    T *key, *value;  // packed, of the current task
    KeySums<T> sums;
    T *query, *query_t, *grad_out, *grad_out_t, *grad_query;  // of the current block
    T *p, *s;                                                 // strips: P, and dP -> scale dS

    BackwardWorkspace(const AttentionProblem& problem, const Plan& plan, const AttentionGradients& g,
                      T* memory)
        : arena(memory) {
        key = arena.take(problem.keys * plan.width);
        value = arena.take(problem.keys * plan.value_width);
        sums = KeySums<T>(problem, plan, g.grad_key, g.grad_value, arena);
        query = arena.take(kBlock * plan.width);
        query_t = arena.take(kBlock * plan.width);
        grad_out = arena.take(kBlock * plan.value_width);
        grad_out_t = arena.take(kBlock * plan.value_width);
        grad_query = arena.take(kBlock * plan.width);
        p = arena.take(problem.keys * kBlock);
        s = arena.take(problem.keys * kBlock);
    }
};

template <class T>
void backward_block(const AttentionProblem& p, const Plan& plan, const Block& b, const AttentionGradients& g,
                    BackwardWorkspace<T>& w, const KeySums<T>& sums) {
    const Index width = plan.width, value_width = plan.value_width;
    pack_rows(head_view(p, p.query, p.type, b.batch, b.head), b.first, b.rows, p.width, w.query, width);
    transpose(w.query, width, b.rows, p.width, w.query_t);
    pack_rows(head_view(p, g.grad_out, p.type, b.batch, b.head), b.first, b.rows, p.value_width, w.grad_out,
              value_width);
    transpose(w.grad_out, value_width, b.rows, p.value_width, w.grad_out_t);

    const bool scores = g.grad_query.data != nullptr || sums.key != nullptr;
    T largest[kBlock], weight[kBlock], mean[kBlock] = {};
    load_statistics(p, b, largest, weight);
    for (Index j = 0; j < b.keys; j += kTile) {
        const Index keys = smaller(kTile, b.keys - j);
        T *tile = w.p + j * kBlock, *s = w.s + j * kBlock;
        scores_of(p, b, w.key, width, w.query_t, j, keys, tile);
        probabilities(b, largest, weight, keys, tile);
        if (!scores) continue;
        multiply<T>(keys, b.lanes, p.value_width, {w.value + j * value_width, value_width, 1}, w.grad_out_t,
                    kBlock, s, kBlock, false);
        add_dots(b, tile, s, keys, mean);
    }
    for (Index j = 0; j < b.keys; j += kTile) {
        const Index keys = smaller(kTile, b.keys - j);
        T *tile = w.p + j * kBlock, *s = w.s + j * kBlock;
        if (sums.value != nullptr) {
            multiply<T>(keys, value_width, b.rows, {tile, kBlock, 1}, w.grad_out, value_width,
                        sums.value + j * value_width, value_width, true);
        }
        if (!scores) continue;
        score_gradient(b, tile, mean, static_cast<T>(p.scale), keys, s);
        if (sums.key != nullptr) {
            multiply<T>(keys, width, b.rows, {s, kBlock, 1}, w.query, width, sums.key + j * width, width,
                        true);
        }
        multiply<T>(b.rows, width, keys, {s, 1, kBlock}, w.key + j * width, width, w.grad_query, width,
                    j > 0);
    }
    if (g.grad_query.data == nullptr) return;
    if (b.keys == 0) fill_zero(w.grad_query, b.rows * width);
    unpack_rows(head_view(p, g.grad_query, p.type, b.batch, b.head), b.first, b.rows, p.width, w.grad_query,
                width);
}

template <class T>
bool backward(const AttentionProblem& p, const AttentionGradients& g) {
    const Plan plan(p, grain::kAttentionBackward);
    const Memory<T> memory(plan, BackwardWorkspace<T>(p, plan, g, nullptr).arena.used,
                           KeySums<T>::elements(p, plan, g.grad_key, g.grad_value));
    if (memory.threads == nullptr) return false;
    Queue queue(plan.tasks());
    deal(plan.threads, [&](int number) {
        BackwardWorkspace<T> w(p, plan, g, memory.threads + number * memory.per_thread);
        for (Index task; queue.take(task);) {
            const Index pair = task / plan.splits, batch = pair / p.key_heads, head = pair % p.key_heads;
            const KeySums<T> sums =
                KeySums<T>::of_task(p, plan, g.grad_key, g.grad_value, memory, task, w.sums);
            sums.clear(p, plan);
            pack_rows(head_view(p, p.key, p.type, batch, head), 0, p.keys, p.width, w.key, plan.width);
            pack_rows(head_view(p, p.value, p.type, batch, head), 0, p.keys, p.value_width, w.value,
                      plan.value_width);
            for (Index at = task % plan.splits; at < plan.blocks * plan.group; at += plan.splits) {
                backward_block(p, plan, block_of<T>(p, plan, pair, at), g, w, sums);
            }
            if (plan.splits == 1) sums.write(p, plan, pair, g.grad_key, g.grad_value);
        }
    });
    KeySums<T>::reduce(p, plan, g.grad_key, g.grad_value, memory);
    return true;
}

}  // namespace

bool attention_backward(const AttentionProblem& p, const AttentionGradients& g) {
    return p.type == Dtype::float64 ? backward<double>(p, g) : backward<float>(p, g);
}

}  // namespace HVP_ISA
}  // namespace hvp
