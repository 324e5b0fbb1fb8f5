// Attention: the backward of the backward, and the forward-mode derivative, which is one of its outputs.
//
// With P the probabilities, q', k', v' the tangents, dO = grad_out, and mean(X) = rowsum(P * X):
//   dP = dO value',  A = scale (q' key' + query k''),  B = dO v'',
//   X = dP - mean(dP),  Y = A - mean(A),  Z = X * Y + B,  R = P * (Z - mean(Z)),
//   out_grad_out = (P * Y) value + P v',         out_value = (P * Y)' dO,
//   out_query = scale (R key + (P * X) k'),      out_key = scale (R' query + (P * X)' q').
// They are the derivatives of sum(P * X * A + P * B) = <q', grad_query> + <k', grad_key> + <v', grad_value>.
#include "keys.h"

namespace hvp {
namespace HVP_ISA {
namespace {

// Which terms exist, from the tangents given and the outputs wanted.
struct Terms {
    bool query, key, value;  // tangents given
    bool scores;             // an output needs R
    bool first;              // A exists

    explicit Terms(const AttentionSecond& s)
        : query(s.tangent_query.data != nullptr),
          key(s.tangent_key.data != nullptr),
          value(s.tangent_value.data != nullptr),
          scores(s.out_query.data != nullptr || s.out_key.data != nullptr),
          first(query || key) {}
};

template <class T>
struct SecondWorkspace {
    Arena<T> arena;
    T *key, *value, *tangent_key, *tangent_value;  // packed, of the current task
    KeySums<T> sums;
    T *query, *query_t, *tangent, *tangent_t, *grad_out, *grad_out_t;  // of the current block
    T *out_query, *out_grad_out;
    T *p, *x, *y, *z;  // strips: P; dP -> scale P X; A / scale -> P Y; B -> Z -> scale R

    SecondWorkspace(const AttentionProblem& problem, const Plan& plan, const AttentionSecond& s, T* memory)
        : arena(memory) {
        const Terms terms(s);
        key = arena.take(problem.keys * plan.width);
        value = arena.take(problem.keys * plan.value_width);
        tangent_key = arena.take(terms.key ? problem.keys * plan.width : 0);
        tangent_value = arena.take(terms.value ? problem.keys * plan.value_width : 0);
        sums = KeySums<T>(problem, plan, s.out_key, s.out_value, arena);
        query = arena.take(kBlock * plan.width);
        query_t = arena.take(kBlock * plan.width);
        tangent = arena.take(kBlock * plan.width);
        tangent_t = arena.take(kBlock * plan.width);
        grad_out = arena.take(kBlock * plan.value_width);
        grad_out_t = arena.take(kBlock * plan.value_width);
        out_query = arena.take(kBlock * plan.width);
        out_grad_out = arena.take(kBlock * plan.value_width);
        p = arena.take(problem.keys * kBlock);
        x = arena.take(terms.scores && terms.first ? problem.keys * kBlock : 0);
        y = arena.take(terms.first ? problem.keys * kBlock : 0);
        z = arena.take(terms.scores ? problem.keys * kBlock : 0);
    }
};

template <class T>
struct Means {
    T x[kBlock] = {}, y[kBlock] = {}, z[kBlock] = {};
};

template <class T>
void pack_block(const AttentionProblem& p, const Plan& plan, const Block& b, const AttentionSecond& s,
                SecondWorkspace<T>& w) {
    const auto pack = [&](const AttentionTensor& t, Index columns, Index stride, T* rows, T* transposed) {
        if (t.data == nullptr) return;
        pack_rows(head_view(p, t, p.type, b.batch, b.head), b.first, b.rows, columns, rows, stride);
        transpose(rows, stride, b.rows, columns, transposed);
    };
    pack(p.query, p.width, plan.width, w.query, w.query_t);
    pack(s.tangent_query, p.width, plan.width, w.tangent, w.tangent_t);
    pack(s.grad_out, p.value_width, plan.value_width, w.grad_out, w.grad_out_t);
}

// First sweep over the keys: fills the strips with P, dP, A / scale, B and sums the means of dP and A /
// scale.
template <class T>
void fill_strips(const AttentionProblem& p, const Plan& plan, const Block& b, const Terms& terms,
                 const SecondWorkspace<T>& w, Means<T>& mean) {
    const Index width = plan.width, value_width = plan.value_width;
    T largest[kBlock], weight[kBlock];
    load_statistics(p, b, largest, weight);
    for (Index j = 0; j < b.keys; j += kTile) {
        const Index keys = smaller(kTile, b.keys - j), at = j * kBlock;
        scores_of(p, b, w.key, width, w.query_t, j, keys, w.p + at);
        probabilities(b, largest, weight, keys, w.p + at);
        const auto product = [&](const T* rows, Index stride, Index depth, const T* right, T* strip,
                                 bool add) {
            multiply<T>(keys, b.lanes, depth, {rows + j * stride, stride, 1}, right, kBlock, strip + at,
                        kBlock, add);
        };
        if (terms.query) product(w.key, width, p.width, w.tangent_t, w.y, false);
        if (terms.key) product(w.tangent_key, width, p.width, w.query_t, w.y, terms.query);
        if (terms.first) add_dots(b, w.p + at, w.y + at, keys, mean.y);
        if (!terms.scores) continue;
        if (terms.first) {
            product(w.value, value_width, p.value_width, w.grad_out_t, w.x, false);
            add_dots(b, w.p + at, w.x + at, keys, mean.x);
        }
        if (terms.value) product(w.tangent_value, value_width, p.value_width, w.grad_out_t, w.z, false);
    }
}

// Second sweep: subtracts the means, x -> scale P X, y -> P Y, z -> Z, and sums the mean of Z.
template <class T>
void center_strips(const AttentionProblem& p, const Block& b, const Terms& terms, const SecondWorkspace<T>& w,
                   Means<T>& mean) {
    const T scale = static_cast<T>(p.scale);
    for (Index j = 0; j < b.keys; ++j) {
        T *pr = w.p + j * kBlock, *x = w.x + j * kBlock, *y = w.y + j * kBlock, *z = w.z + j * kBlock;
        if (terms.first && terms.scores) {
            if (!terms.value) fill_zero(z, b.lanes);
#pragma omp simd
            for (Index i = 0; i < b.lanes; ++i) {
                const T cx = x[i] - mean.x[i], cy = scale * (y[i] - mean.y[i]);
                z[i] = cx * cy + z[i];
                x[i] = scale * pr[i] * cx;
                y[i] = pr[i] * cy;
            }
        } else if (terms.first) {
#pragma omp simd
            for (Index i = 0; i < b.lanes; ++i) y[i] = pr[i] * (scale * (y[i] - mean.y[i]));
        }
    }
    if (!terms.scores) return;
    for (Index j = 0; j < b.keys; j += kTile) {
        add_dots(b, w.p + j * kBlock, w.z + j * kBlock, smaller(kTile, b.keys - j), mean.z);
    }
}

// Third sweep: z -> scale R, and the products with the strips.
template <class T>
void accumulate(const AttentionProblem& p, const Plan& plan, const Block& b, const Terms& terms,
                const AttentionSecond& s, const SecondWorkspace<T>& w, const KeySums<T>& sums,
                const Means<T>& mean) {
    const Index width = plan.width, value_width = plan.value_width;
    const T scale = static_cast<T>(p.scale);
    for (Index j = 0; j < b.keys; j += kTile) {
        const Index keys = smaller(kTile, b.keys - j), at = j * kBlock;
        // to_queries: out += strip' rows; to_keys: out += strip rows.
        const auto to_queries = [&](const T* strip, const T* rows, Index stride, T* out, bool add) {
            multiply<T>(b.rows, stride, keys, {strip + at, 1, kBlock}, rows + j * stride, stride, out, stride,
                        add);
        };
        const auto to_keys = [&](const T* strip, const T* rows, Index stride, T* out) {
            multiply<T>(keys, stride, b.rows, {strip + at, kBlock, 1}, rows, stride, out + j * stride, stride,
                        true);
        };
        if (s.out_grad_out.data != nullptr) {
            if (terms.first) to_queries(w.y, w.value, value_width, w.out_grad_out, j > 0);
            if (terms.value)
                to_queries(w.p, w.tangent_value, value_width, w.out_grad_out, j > 0 || terms.first);
        }
        if (sums.value != nullptr && terms.first) to_keys(w.y, w.grad_out, value_width, sums.value);
        if (!terms.scores) continue;
        score_gradient(b, w.p + at, mean.z, scale, keys, w.z + at);
        if (s.out_query.data != nullptr) {
            to_queries(w.z, w.key, width, w.out_query, j > 0);
            if (terms.key) to_queries(w.x, w.tangent_key, width, w.out_query, true);
        }
        if (sums.key == nullptr) continue;
        to_keys(w.z, w.query, width, sums.key);
        if (terms.query) to_keys(w.x, w.tangent, width, sums.key);
    }
}

template <class T>
void second_block(const AttentionProblem& p, const Plan& plan, const Block& b, const AttentionSecond& s,
                  SecondWorkspace<T>& w, const KeySums<T>& sums) {
    const Terms terms(s);
    if (b.keys == 0) {
        fill_zero(w.out_query, b.rows * plan.width);
        fill_zero(w.out_grad_out, b.rows * plan.value_width);
    }
    Means<T> mean;
    pack_block(p, plan, b, s, w);
    fill_strips(p, plan, b, terms, w, mean);
    center_strips(p, b, terms, w, mean);
    accumulate(p, plan, b, terms, s, w, sums, mean);
    if (s.out_query.data != nullptr) {
        unpack_rows(head_view(p, s.out_query, p.type, b.batch, b.head), b.first, b.rows, p.width, w.out_query,
                    plan.width);
    }
    if (s.out_grad_out.data != nullptr) {
        unpack_rows(head_view(p, s.out_grad_out, p.type, b.batch, b.head), b.first, b.rows, p.value_width,
                    w.out_grad_out, plan.value_width);
    }
}

template <class T>
void pack_keys(const AttentionProblem& p, const Plan& plan, Index pair, const AttentionSecond& s,
               const SecondWorkspace<T>& w) {
    const auto pack = [&](const AttentionTensor& t, Index columns, Index stride, T* to) {
        if (t.data == nullptr) return;
        pack_rows(head_view(p, t, p.type, pair / p.key_heads, pair % p.key_heads), 0, p.keys, columns, to,
                  stride);
    };
    pack(p.key, p.width, plan.width, w.key);
    pack(p.value, p.value_width, plan.value_width, w.value);
    pack(s.tangent_key, p.width, plan.width, w.tangent_key);
    pack(s.tangent_value, p.value_width, plan.value_width, w.tangent_value);
}

template <class T>
bool second(const AttentionProblem& p, const AttentionSecond& s) {
    const Plan plan(p, grain::kAttentionSecond);
    const Memory<T> memory(plan, SecondWorkspace<T>(p, plan, s, nullptr).arena.used,
                           KeySums<T>::elements(p, plan, s.out_key, s.out_value));
    if (memory.threads == nullptr) return false;
    Queue queue(plan.tasks());
    deal(plan.threads, [&](int number) {
        SecondWorkspace<T> w(p, plan, s, memory.threads + number * memory.per_thread);
        for (Index task; queue.take(task);) {
            const Index pair = task / plan.splits;
            const KeySums<T> sums =
                KeySums<T>::of_task(p, plan, s.out_key, s.out_value, memory, task, w.sums);
            sums.clear(p, plan);
            pack_keys(p, plan, pair, s, w);
            for (Index at = task % plan.splits; at < plan.blocks * plan.group; at += plan.splits) {
                second_block(p, plan, block_of<T>(p, plan, pair, at), s, w, sums);
            }
            if (plan.splits == 1) sums.write(p, plan, pair, s.out_key, s.out_value);
        }
    });
    KeySums<T>::reduce(p, plan, s.out_key, s.out_value, memory);
    return true;
}

}  // namespace

bool attention_second(const AttentionProblem& p, const AttentionSecond& s) {
    return p.type == Dtype::float64 ? second<double>(p, s) : second<float>(p, s);
}

}  // namespace HVP_ISA
}  // namespace hvp
