// Cross-entropy rows. One thread owns a row and sums it in blocks of fixed size, so the bits do not depend on
// the thread count; a row of 50k floats and its tangent stay in the second-level cache between the two loops
// over them.
#include "hvp/cross_entropy.h"

#include <cmath>
#include <cstdlib>

#include "element.h"
#include "exp_nonpositive.h"
#include "grains.h"
#include "parallel.h"

namespace hvp {
namespace HVP_ISA {
namespace {

constexpr std::int64_t kBlock = 1024;

double elements(std::int64_t rows, const CrossEntropyRows& in) {
    return static_cast<double>(rows * in.classes);
}

// With L = log sum exp z: loss = hit (L - z_target) + smooth sum_c w_c (L - z_c), and its gradient is
// mass p - hit e_target - smooth w.
struct RowTerms {
    bool kept;
    std::int64_t target;
    double hit;
    double smooth;
    double mass;
};

template <class A>
double weight_sum(const CrossEntropyRows& in) {
    if (in.class_weight == nullptr) return static_cast<double>(in.classes);
    const A* w = static_cast<const A*>(in.class_weight);
    double sum = 0;
    for (std::int64_t c = 0; c < in.classes; ++c) sum += w[c];
    return sum;
}

template <class A>
RowTerms row_terms(const CrossEntropyRows& in, std::int64_t base_row, double total_weight) {
    RowTerms row{};
    row.target = in.target[base_row];
    row.kept = row.target != in.ignore_index;
    if (!row.kept) return row;
    const A* w = static_cast<const A*>(in.class_weight);
    row.hit = (1.0 - in.smoothing) * (w == nullptr ? 1.0 : static_cast<double>(w[row.target]));
    row.smooth = in.smoothing / static_cast<double>(in.classes);
    row.mass = row.hit + row.smooth * total_weight;
    return row;
}

std::int64_t block_end(std::int64_t begin, std::int64_t classes) {
    return begin + kBlock < classes ? begin + kBlock : classes;
}

// sum_c w_c x_c, the part of the loss and of its slope that label smoothing adds.
template <class T>
double weighted_sum(const T* x, const Acc<T>* w, std::int64_t classes) {
    double total = 0;
    for (std::int64_t b = 0; b < classes; b = block_end(b, classes)) {
        const std::int64_t e = block_end(b, classes);
        Acc<T> sum = 0;
        if (w == nullptr) {
#pragma omp simd reduction(+ : sum)
            for (std::int64_t c = b; c < e; ++c) sum += load(x + c);
        } else {
#pragma omp simd reduction(+ : sum)
            for (std::int64_t c = b; c < e; ++c) sum += w[c] * load(x + c);
        }
        total += sum;
    }
    return total;
}

struct RowStatistics {
    double shift;  // the largest logit
    double sum;    // of exp(z - shift)
};

// One read of the row: the running maximum moves from block to block and rescales the running sum.
template <class T>
RowStatistics row_statistics(const T* z, std::int64_t classes) {
    using A = Acc<T>;
    A shift = -static_cast<A>(INFINITY);
    double total = 0;
    for (std::int64_t b = 0; b < classes; b = block_end(b, classes)) {
        const std::int64_t e = block_end(b, classes);
        A largest = shift;
#pragma omp simd reduction(max : largest)
        for (std::int64_t c = b; c < e; ++c) {
            const A x = load(z + c);
            largest = x > largest ? x : largest;
        }
        if (largest > shift) {
            total *= std::exp(static_cast<double>(shift) - static_cast<double>(largest));
            shift = largest;
        }
        // Nothing but -inf so far: subtracting it would make NaN of a row that finite logits may still
        // follow.
        const A finite_shift = shift == -static_cast<A>(INFINITY) ? A(0) : shift;
        A sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t c = b; c < e; ++c) sum += simd::exp_nonpositive(load(z + c) - finite_shift);
        total += sum;
    }
    return {static_cast<double>(shift), total};
}

template <class T>
void forward(const CrossEntropyRows& in, Acc<T>* statistics, Acc<T>* loss) {
    using A = Acc<T>;
    const A* w = static_cast<const A*>(in.class_weight);
    const double total_weight = weight_sum<A>(in);
    parallel_for(in.base_rows, elements(in.base_rows, in), grain::kCrossEntropy, [&](std::int64_t r) {
        const T* z = static_cast<const T*>(in.logits) + r * in.classes;
        const RowTerms row = row_terms<A>(in, r, total_weight);
        const RowStatistics found = row_statistics(z, in.classes);
        const double value = found.shift + std::log(found.sum);
        statistics[2 * r] = static_cast<A>(found.shift);
        statistics[2 * r + 1] = static_cast<A>(1.0 / found.sum);
        double sum = 0;
        if (row.kept) {
            sum = row.hit * (value - static_cast<double>(load(z + row.target)));
            if (row.smooth != 0) sum += row.smooth * (total_weight * value - weighted_sum(z, w, in.classes));
        }
        loss[r] = static_cast<A>(sum);
    });
}

template <class T>
void fill_zero(T* row, std::int64_t classes) {
    for (std::int64_t c = 0; c < classes; ++c) store(row + c, 0);
}

template <class T>
void backward(const CrossEntropyRows& in, const Acc<T>* statistics, const Acc<T>* scale, T* grad) {
    using A = Acc<T>;
    const A* w = static_cast<const A*>(in.class_weight);
    const double total_weight = weight_sum<A>(in);
    parallel_for(in.rows, elements(in.rows, in), grain::kCrossEntropy, [&](std::int64_t r) {
        const std::int64_t base = r % in.base_rows;
        const T* z = static_cast<const T*>(in.logits) + base * in.classes;
        T* out = grad + r * in.classes;
        const RowTerms row = row_terms<A>(in, base, total_weight);
        if (!row.kept) {
            fill_zero(out, in.classes);
            return;
        }
        const A shift = statistics[2 * base];
        const A mass = static_cast<A>(row.mass) * statistics[2 * base + 1];
        const A g = scale[r];
        const A smooth = static_cast<A>(row.smooth);
        const A at_target = load(z + row.target);  // before the loop: out may be z
        if (row.smooth == 0) {
            const A factor = g * mass;
#pragma omp simd
            for (std::int64_t c = 0; c < in.classes; ++c)
                store(out + c, factor * simd::exp_nonpositive(load(z + c) - shift));
        } else {
#pragma omp simd
            for (std::int64_t c = 0; c < in.classes; ++c) {
                const A weight = w == nullptr ? A(1) : w[c];
                store(out + c, g * (mass * simd::exp_nonpositive(load(z + c) - shift) - smooth * weight));
            }
        }
        const A drop = static_cast<A>(row.hit + row.smooth * (w == nullptr ? 1.0 : w[row.target]));
        store(out + row.target, g * (mass * simd::exp_nonpositive(at_target - shift) - drop));
    });
}

// <softmax(z), u>; keeps exp(z - shift) in p. Dividing by the sum of the very terms in the numerator, not by
// the rounded one, leaves u - <p, u> accurate where one class has nearly all the probability.
template <class T>
double softmax_dot(const T* z, const T* u, Acc<T> shift, std::int64_t classes, Acc<T>* p) {
    double numerator = 0, denominator = 0;
    for (std::int64_t b = 0; b < classes; b = block_end(b, classes)) {
        const std::int64_t e = block_end(b, classes);
        Acc<T> weighted = 0, sum = 0;
#pragma omp simd reduction(+ : weighted, sum)
        for (std::int64_t c = b; c < e; ++c) {
            const Acc<T> value = simd::exp_nonpositive(load(z + c) - shift);
            p[c] = value;
            sum += value;
            weighted += value * load(u + c);
        }
        numerator += weighted;
        denominator += sum;
    }
    return numerator / denominator;
}

template <class T>
void hvp_row(const CrossEntropyRows& in, const RowTerms& row, const T* z, const T* u,
             const Acc<T>* statistics, Acc<T> scale, Acc<T>* p, T* out, Acc<T>* slope) {
    using A = Acc<T>;
    const double mean = softmax_dot(z, u, statistics[0], in.classes, p);
    if (slope != nullptr) {
        double value = row.mass * mean - row.hit * static_cast<double>(load(u + row.target));
        if (row.smooth != 0)
            value -= row.smooth * weighted_sum(u, static_cast<const A*>(in.class_weight), in.classes);
        *slope = static_cast<A>(value);
    }
    if (out == nullptr) return;
    const A center = static_cast<A>(mean);
    const A rest = static_cast<A>(mean - static_cast<double>(center));
    const A factor = scale * static_cast<A>(row.mass) * statistics[1];
#pragma omp simd
    for (std::int64_t c = 0; c < in.classes; ++c)
        store(out + c, factor * p[c] * ((load(u + c) - center) - rest));
}

// Exponentials of one row per thread: they stay in cache, and save a second exponential.
template <class T>
bool hvp(const CrossEntropyRows& in, const Acc<T>* statistics, const Acc<T>* scale, const T* tangent,
         T* product, Acc<T>* slope) {
    using A = Acc<T>;
    const double total_weight = weight_sum<A>(in);
    const std::int64_t shares = shares_of(in.rows, elements(in.rows, in), grain::kCrossEntropy);
    const std::int64_t apart = (in.classes + 31) / 16 * 16;  // no two threads write to one cache line
    A* memory = static_cast<A*>(std::malloc(static_cast<std::size_t>(shares * apart) * sizeof(A)));
    if (memory == nullptr) return false;
    deal(static_cast<int>(shares), [&](int number) {
        A* p = memory + number * apart;
        const std::int64_t last = in.rows * (number + 1) / shares;
        for (std::int64_t r = in.rows * number / shares; r < last; ++r) {
            const std::int64_t base = r % in.base_rows;
            const RowTerms row = row_terms<A>(in, base, total_weight);
            T* out = product == nullptr ? nullptr : product + r * in.classes;
            if (row.kept) {
                hvp_row(in, row, static_cast<const T*>(in.logits) + base * in.classes,
                        tangent + r * in.classes, statistics + 2 * base, scale[r], p, out,
                        slope == nullptr ? nullptr : slope + r);
                continue;
            }
            if (out != nullptr) fill_zero(out, in.classes);
            if (slope != nullptr) slope[r] = 0;
        }
    });
    std::free(memory);
    return true;
}

}  // namespace

void cross_entropy_forward(const CrossEntropyRows& in, void* statistics, void* loss) {
    with_dtype(in.dtype, [&](auto element) {
        using T = decltype(element);
        forward<T>(in, static_cast<Acc<T>*>(statistics), static_cast<Acc<T>*>(loss));
    });
}

void cross_entropy_backward(const CrossEntropyRows& in, const void* statistics, const void* scale,
                            void* grad) {
    with_dtype(in.dtype, [&](auto element) {
        using T = decltype(element);
        backward<T>(in, static_cast<const Acc<T>*>(statistics), static_cast<const Acc<T>*>(scale),
                    static_cast<T*>(grad));
    });
}

bool cross_entropy_hvp(const CrossEntropyRows& in, const void* statistics, const void* scale,
                       const void* tangent, void* product, void* slope) {
    bool complete = false;
    with_dtype(in.dtype, [&](auto element) {
        using T = decltype(element);
        complete =
            hvp<T>(in, static_cast<const Acc<T>*>(statistics), static_cast<const Acc<T>*>(scale),
                   static_cast<const T*>(tangent), static_cast<T*>(product), static_cast<Acc<T>*>(slope));
    });
    return complete;
}

}  // namespace HVP_ISA
}  // namespace hvp
