// Softmax rows; one thread owns a row and sums it in blocks of fixed size, so the bits do not depend on the
// threads.
#include "hvp/softmax.h"

#include <cmath>

#include "element.h"
#include "exp_nonpositive.h"
#include "grains.h"
#include "parallel.h"

namespace hvp {
namespace HVP_ISA {
namespace {

constexpr std::int64_t kBlock = 1024;

std::int64_t block_end(std::int64_t begin, std::int64_t columns) {
    return begin + kBlock < columns ? begin + kBlock : columns;
}

template <class Body>
void for_each_row(std::int64_t rows, std::int64_t columns, const Body& body) {
    parallel_for(rows, static_cast<double>(rows * columns), grain::kSoftmax, body);
}

template <class T>
void forward(const T* input, std::int64_t rows, std::int64_t columns, T* output) {
    using A = Acc<T>;
    for_each_row(rows, columns, [&](std::int64_t r) {
        const T* x = input + r * columns;
        T* out = output + r * columns;
        A largest = -static_cast<A>(INFINITY);
#pragma omp simd reduction(max : largest)
        for (std::int64_t c = 0; c < columns; ++c) {
            const A value = load(x + c);
            largest = value > largest ? value : largest;
        }
        double total = 0;
        for (std::int64_t b = 0; b < columns; b = block_end(b, columns)) {
            const std::int64_t e = block_end(b, columns);
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (std::int64_t c = b; c < e; ++c) sum += simd::exp_nonpositive(load(x + c) - largest);
            total += sum;
        }
        const A factor = static_cast<A>(1.0 / total);
#pragma omp simd
        for (std::int64_t c = 0; c < columns; ++c)
            store(out + c, factor * simd::exp_nonpositive(load(x + c) - largest));
    });
}

template <class T>
double dot(const T* a, const T* b, std::int64_t columns) {
    double total = 0;
    for (std::int64_t begin = 0; begin < columns; begin = block_end(begin, columns)) {
        const std::int64_t end = block_end(begin, columns);
        Acc<T> sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t c = begin; c < end; ++c) sum += load(a + c) * load(b + c);
        total += sum;
    }
    return total;
}

template <class T>
void backward(const T* probabilities, const T* upstream, std::int64_t rows, std::int64_t base_rows,
              std::int64_t columns, T* grad_input) {
    for_each_row(rows, columns, [&](std::int64_t r) {
        const T* p = probabilities + (r % base_rows) * columns;
        const T* g = upstream + r * columns;
        T* out = grad_input + r * columns;
        const Acc<T> mean = static_cast<Acc<T>>(dot(p, g, columns));
#pragma omp simd
        for (std::int64_t c = 0; c < columns; ++c) store(out + c, load(p + c) * (load(g + c) - mean));
    });
}

// With a = g - <p, g> and b = u - <p, u>, F = <u, p a> has dF/dg = p b and, through p(x), dF/dx = p (a b -
// <p, a b>).
template <class T>
void double_backward(const T* probabilities, const T* upstream, const T* cotangent, std::int64_t rows,
                     std::int64_t base_rows, std::int64_t columns, T* wrt_input, T* wrt_g) {
    using A = Acc<T>;
    for_each_row(rows, columns, [&](std::int64_t r) {
        const T* p = probabilities + (r % base_rows) * columns;
        const T* g = upstream + r * columns;
        const T* u = cotangent + r * columns;
        const A mean_g = static_cast<A>(dot(p, g, columns));
        const A mean_u = static_cast<A>(dot(p, u, columns));
        if (wrt_g != nullptr) {
            T* out = wrt_g + r * columns;
#pragma omp simd
            for (std::int64_t c = 0; c < columns; ++c) store(out + c, load(p + c) * (load(u + c) - mean_u));
        }
        if (wrt_input == nullptr) return;
        double total = 0;
        for (std::int64_t b = 0; b < columns; b = block_end(b, columns)) {
            const std::int64_t e = block_end(b, columns);
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (std::int64_t c = b; c < e; ++c)
                sum += load(p + c) * ((load(g + c) - mean_g) * (load(u + c) - mean_u));
            total += sum;
        }
        const A covariance = static_cast<A>(total);
        T* out = wrt_input + r * columns;
#pragma omp simd
        for (std::int64_t c = 0; c < columns; ++c)
            store(out + c, load(p + c) * ((load(g + c) - mean_g) * (load(u + c) - mean_u) - covariance));
    });
}

// Sums of rounded terms in the accumulator type are short (kBlock), their sum is a double.
template <class T>
void tangent_rows(const T* logits, std::int64_t row_stride, const Acc<T>* statistics, const Acc<T>* factor,
                  const Acc<T>* center, std::int64_t rows, std::int64_t columns, T* tangent, double* totals) {
    using A = Acc<T>;
    for_each_row(rows, columns, [&](std::int64_t r) {
        const T* z = logits + r * row_stride;
        T* t = tangent + r * columns;
        const A f = factor[r], shift = statistics[2 * r], mean = center[r];
        if (f == 0) {  // whatever the logits are: zero times infinity is no number
            for (std::int64_t c = 0; c < columns; ++c) store(t + c, 0);
            return;
        }
        double total = 0;
        for (std::int64_t b = 0; b < columns; b = block_end(b, columns)) {
            const std::int64_t e = block_end(b, columns);
            A sum = 0;
#pragma omp simd reduction(+ : sum)
            for (std::int64_t c = b; c < e; ++c) {
                const A value = f * simd::exp_nonpositive(load(z + c) - shift) * (load(t + c) - mean);
                store(t + c, value);
                sum += value;
            }
            total += sum;
        }
        totals[r] += total;
    });
}

}  // namespace

void softmax_tangent(Dtype dtype, const void* logits, std::int64_t row_stride, const void* statistics,
                     const void* factor, const void* center, std::int64_t rows, std::int64_t columns,
                     void* tangent, double* totals) {
    with_dtype(dtype, [&](auto element) {
        using T = decltype(element);
        tangent_rows<T>(static_cast<const T*>(logits), row_stride, static_cast<const Acc<T>*>(statistics),
                        static_cast<const Acc<T>*>(factor), static_cast<const Acc<T>*>(center), rows, columns,
                        static_cast<T*>(tangent), totals);
    });
}

void softmax_forward(Dtype dtype, const void* input, std::int64_t rows, std::int64_t columns, void* output) {
    with_dtype(dtype, [&](auto element) {
        using T = decltype(element);
        forward<T>(static_cast<const T*>(input), rows, columns, static_cast<T*>(output));
    });
}

void softmax_backward(Dtype dtype, const void* p, const void* g, std::int64_t rows, std::int64_t base_rows,
                      std::int64_t columns, void* grad_input) {
    with_dtype(dtype, [&](auto element) {
        using T = decltype(element);
        backward<T>(static_cast<const T*>(p), static_cast<const T*>(g), rows, base_rows, columns,
                    static_cast<T*>(grad_input));
    });
}

void softmax_double_backward(Dtype dtype, const void* p, const void* g, const void* u, std::int64_t rows,
                             std::int64_t base_rows, std::int64_t columns, void* wrt_input, void* wrt_g) {
    with_dtype(dtype, [&](auto element) {
        using T = decltype(element);
        double_backward<T>(static_cast<const T*>(p), static_cast<const T*>(g), static_cast<const T*>(u), rows,
                           base_rows, columns, static_cast<T*>(wrt_input), static_cast<T*>(wrt_g));
    });
}

}  // namespace HVP_ISA
}  // namespace hvp
