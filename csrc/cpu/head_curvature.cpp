// Building and applying packed symmetric matrices. One thread owns a token (or a row of pair products).
#include "hvp/head_curvature.h"

namespace hvp {
namespace HVP_ISA {
namespace {

std::int64_t row_offset(std::int64_t i, std::int64_t d) { return i * d - i * (i - 1) / 2; }

// The row i of the triangle that holds pair q.
std::int64_t row_of(std::int64_t q, std::int64_t d) {
    std::int64_t low = 0, high = d;
    while (high - low > 1) {
        const std::int64_t middle = low + (high - low) / 2;
        if (row_offset(middle, d) <= q)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// Calls segment(i, j, count, position) for the runs (i, j), (i, j + 1), ... of the pairs first..last;
// position counts from first.
template <class Segment>
__attribute__((always_inline)) inline void for_each_segment(std::int64_t d, std::int64_t first,
                                                            std::int64_t last, Segment segment) {
    std::int64_t q = first;
    for (std::int64_t i = row_of(first, d); q < last; ++i) {
        const std::int64_t end = row_offset(i + 1, d) < last ? row_offset(i + 1, d) : last;
        segment(i, i + (q - row_offset(i, d)), end - q, q - first);
        q = end;
    }
}

template <class A>
void products_of_pairs(const A* weight, const A* center, std::int64_t rows, std::int64_t d,
                       std::int64_t first, std::int64_t last, A* products) {
#pragma omp parallel for schedule(static)
    for (std::int64_t v = 0; v < rows; ++v) {
        const A* w = weight + v * d;
        A* out = products + v * (last - first);
        for_each_segment(d, first, last,
                         [&](std::int64_t i, std::int64_t j, std::int64_t count, std::int64_t at) {
                             const A left = w[i] - center[i];
#pragma omp simd
                             for (std::int64_t c = 0; c < count; ++c)
                                 out[at + c] = left * (w[j + c] - center[j + c]);
                         });
    }
}

template <class A, class S>
void subtract_means(const A* moments, const A* mean, std::int64_t tokens, std::int64_t d, std::int64_t first,
                    std::int64_t last, S* packed) {
#pragma omp parallel for schedule(static)
    for (std::int64_t n = 0; n < tokens; ++n) {
        const A* m = mean + n * d;
        const A* in = moments + n * (last - first);
        S* out = packed + n * (d * (d + 1) / 2) + first;
        for_each_segment(d, first, last,
                         [&](std::int64_t i, std::int64_t j, std::int64_t count, std::int64_t at) {
                             const A left = m[i];
#pragma omp simd
                             for (std::int64_t c = 0; c < count; ++c)
                                 store(out + at + c, in[at + c] - left * m[j + c]);
                         });
    }
}

// Row i of the triangle serves both halves of the matrix: a dot product for out[i], an axpy for out[i
// + 1..d).
template <class S>
void triangle_row(const S* row, std::int64_t length, const Acc<S>* u, Acc<S>* out) {
    const Acc<S> first = u[0];
    Acc<S> sum = load(row) * first;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 1; j < length; ++j) {
        const Acc<S> m = load(row + j);
        sum += m * u[j];
        out[j] += m * first;
    }
    out[0] += sum;
}

template <class S>
void matvec(const S* packed, const Acc<S>* vectors, std::int64_t count, std::int64_t tokens, std::int64_t d,
            Acc<S>* out) {
#pragma omp parallel for schedule(static)
    for (std::int64_t n = 0; n < tokens; ++n) {
        for (std::int64_t k = 0; k < count; ++k)
            for (std::int64_t i = 0; i < d; ++i) out[(k * tokens + n) * d + i] = 0;
        const S* row = packed + n * (d * (d + 1) / 2);
        for (std::int64_t i = 0; i < d; ++i) {
            for (std::int64_t k = 0; k < count; ++k) {
                const std::int64_t at = (k * tokens + n) * d + i;
                triangle_row(row, d - i, vectors + at, out + at);
            }
            row += d - i;
        }
    }
}

}  // namespace

void pair_products(Dtype dtype, const void* weight, const void* center, std::int64_t rows, std::int64_t d,
                   std::int64_t first, std::int64_t last, void* products) {
    if (dtype == Dtype::f64)
        products_of_pairs(static_cast<const double*>(weight), static_cast<const double*>(center), rows, d,
                          first, last, static_cast<double*>(products));
    else
        products_of_pairs(static_cast<const float*>(weight), static_cast<const float*>(center), rows, d,
                          first, last, static_cast<float*>(products));
}

void pack_covariance(Dtype moment_dtype, Dtype packed_dtype, const void* moments, const void* mean,
                     std::int64_t tokens, std::int64_t d, std::int64_t first, std::int64_t last,
                     void* packed) {
    if (moment_dtype == Dtype::f64)
        subtract_means(static_cast<const double*>(moments), static_cast<const double*>(mean), tokens, d,
                       first, last, static_cast<double*>(packed));
    else if (packed_dtype == Dtype::f32)
        subtract_means(static_cast<const float*>(moments), static_cast<const float*>(mean), tokens, d, first,
                       last, static_cast<float*>(packed));
    else
        subtract_means(static_cast<const float*>(moments), static_cast<const float*>(mean), tokens, d, first,
                       last, static_cast<Bf16*>(packed));
}

void packed_symmetric_matvec(Dtype dtype, const void* packed, const void* vectors, std::int64_t count,
                             std::int64_t tokens, std::int64_t d, void* out) {
    with_dtype(dtype, [&](auto element) {
        using S = decltype(element);
        matvec<S>(static_cast<const S*>(packed), static_cast<const Acc<S>*>(vectors), count, tokens, d,
                  static_cast<Acc<S>*>(out));
    });
}

}  // namespace HVP_ISA
}  // namespace hvp
