// Sums over queries that belong to keys (the gradients of key and value), for the attention kernels.
#pragma once

#include "tile.h"

namespace hvp {
namespace HVP_ISA {
namespace {

// Per (batch entry, key head): keys x width and keys x value width, each null when its output is not wanted.
// A head done by one task sums in the thread's workspace; the tasks of a split head each keep their own share
// and `reduce` adds these in the order of the tasks, so that the bits do not depend on the threads.
template <class T>
struct KeySums {
    T* key = nullptr;
    T* value = nullptr;

    KeySums() = default;
    KeySums(const AttentionProblem& p, const Plan& plan, const AttentionTensor& for_key,
            const AttentionTensor& for_value, Arena<T>& arena) {
        if (for_key.data != nullptr) key = arena.take(p.keys * plan.width);
        if (for_value.data != nullptr) value = arena.take(p.keys * plan.value_width);
    }

    static Index elements(const AttentionProblem& p, const Plan& plan, const AttentionTensor& for_key,
                          const AttentionTensor& for_value) {
        Arena<T> counter(nullptr);
        KeySums(p, plan, for_key, for_value, counter);
        return counter.used;
    }

    static KeySums of_task(const AttentionProblem& p, const Plan& plan, const AttentionTensor& for_key,
                           const AttentionTensor& for_value, const Memory<T>& memory, Index task,
                           const KeySums& of_thread) {
        if (plan.splits == 1) return of_thread;
        Arena<T> arena(memory.tasks + task * memory.per_task);
        return KeySums(p, plan, for_key, for_value, arena);
    }

    void clear(const AttentionProblem& p, const Plan& plan) const {
        if (key != nullptr) fill_zero(key, p.keys * plan.width);
        if (value != nullptr) fill_zero(value, p.keys * plan.value_width);
    }

    void write(const AttentionProblem& p, const Plan& plan, Index pair, const AttentionTensor& to_key,
               const AttentionTensor& to_value) const {
        const Index batch = pair / p.key_heads, head = pair % p.key_heads;
        if (key != nullptr) {
            unpack_rows(head_view(p, to_key, p.type, batch, head), 0, p.keys, p.width, key, plan.width);
        }
        if (value != nullptr) {
            unpack_rows(head_view(p, to_value, p.type, batch, head), 0, p.keys, p.value_width, value,
                        plan.value_width);
        }
    }

    void add(const AttentionProblem& p, const Plan& plan, const KeySums& other) const {
        if (key != nullptr) {
            for (Index i = 0; i < p.keys * plan.width; ++i) key[i] += other.key[i];
        }
        if (value != nullptr) {
            for (Index i = 0; i < p.keys * plan.value_width; ++i) value[i] += other.value[i];
        }
    }

    // Adds the shares of split heads, after all tasks.
    static void reduce(const AttentionProblem& p, const Plan& plan, const AttentionTensor& to_key,
                       const AttentionTensor& to_value, const Memory<T>& memory) {
        if (plan.splits == 1) return;
        const auto elements = static_cast<double>(memory.per_task * plan.tasks());
        parallel_for(plan.heads, elements, grain::kAttentionSums, [&](Index pair) {
            const Index first = pair * plan.splits;
            const KeySums total = of_task(p, plan, to_key, to_value, memory, first, KeySums());
            for (Index split = 1; split < plan.splits; ++split) {
                total.add(p, plan, of_task(p, plan, to_key, to_value, memory, first + split, KeySums()));
            }
            total.write(p, plan, pair, to_key, to_value);
        });
    }
};

}  // namespace
}  // namespace HVP_ISA
}  // namespace hvp
