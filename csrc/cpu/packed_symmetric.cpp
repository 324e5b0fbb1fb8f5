// Building and applying packed symmetric matrices. One thread owns a token (or a row of pair products).
#include "hvp/packed_symmetric.h"

#include "element.h"
#include "grains.h"
#include "parallel.h"

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
    parallel_for(rows, static_cast<double>(rows * (last - first)), grain::kPairs, [&](std::int64_t v) {
        const A* w = weight + v * d;
        A* out = products + v * (last - first);
        for_each_segment(d, first, last,
                         [&](std::int64_t i, std::int64_t j, std::int64_t count, std::int64_t at) {
                             const A left = w[i] - center[i];
#pragma omp simd
                             for (std::int64_t c = 0; c < count; ++c)
                                 out[at + c] = left * (w[j + c] - center[j + c]);
                         });
    });
}

template <class A, class S>
void subtract_means(const A* moments, const A* mean, std::int64_t tokens, std::int64_t d, std::int64_t first,
                    std::int64_t last, S* packed) {
    parallel_for(tokens, static_cast<double>(tokens * (last - first)), grain::kPairs, [&](std::int64_t n) {
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
    });
}

// Rows that one pass over a vector serves: enough to hide the traffic of the vector and of the result.
constexpr std::int64_t kRows = 4;

// One row of the triangle, all of it: a dot product for out[0], an axpy for out[1..length).
template <class S>
void single_row(const S* row, std::int64_t length, const Acc<S>* u, Acc<S>* out) {
    out[0] += load(row) * u[0];
    for (std::int64_t j = 1; j < length; ++j) {
        out[0] += load(row + j) * u[j];
        out[j] += load(row + j) * u[0];
    }
}

// Four rows, of lengths length, length - 1, ... The square where they meet the diagonal is left to
// single_row.
template <class S>
void four_rows(const S* first, std::int64_t length, const Acc<S>* u, Acc<S>* out) {
    using A = Acc<S>;
    const S* second =
        first + length - 1;  // each row starts one column later, so that column j is at index j in all
    const S* third = second + length - 2;
    const S* fourth = third + length - 3;
    single_row(first, kRows, u, out);
    single_row(second + 1, kRows - 1, u + 1, out + 1);
    single_row(third + 2, kRows - 2, u + 2, out + 2);
    single_row(fourth + 3, kRows - 3, u + 3, out + 3);
    const A u0 = u[0], u1 = u[1], u2 = u[2], u3 = u[3];
    A s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (std::int64_t j = kRows; j < length; ++j) {
        const A a = load(first + j), b = load(second + j), c = load(third + j), e = load(fourth + j);
        const A x = u[j];
        s0 += a * x;
        s1 += b * x;
        s2 += c * x;
        s3 += e * x;
        out[j] += (a * u0 + b * u1) + (c * u2 + e * u3);
    }
    out[0] += s0;
    out[1] += s1;
    out[2] += s2;
    out[3] += s3;
}

template <class S>
void matvec(const S* packed, const Acc<S>* vectors, std::int64_t count, std::int64_t tokens, std::int64_t d,
            Acc<S>* out) {
    const std::int64_t entries = tokens * (d * (d + 1) / 2);
    parallel_for(tokens, static_cast<double>(entries * count), grain::kMatvec, [&](std::int64_t n) {
        for (std::int64_t k = 0; k < count; ++k)
            for (std::int64_t i = 0; i < d; ++i) out[(k * tokens + n) * d + i] = 0;
        const S* matrix = packed + n * (d * (d + 1) / 2);
        std::int64_t i = 0;
        while (i < d) {
            const bool block = d - i >= kRows;
            for (std::int64_t k = 0; k < count; ++k) {
                const std::int64_t at = (k * tokens + n) * d + i;
                if (block)
                    four_rows(matrix + row_offset(i, d), d - i, vectors + at, out + at);
                else
                    single_row(matrix + row_offset(i, d), d - i, vectors + at, out + at);
            }
            i += block ? kRows : 1;
        }
    });
}

}  // namespace

void pair_products(Dtype dtype, const void* weight, const void* center, std::int64_t rows, std::int64_t d,
                   std::int64_t first, std::int64_t last, void* products) {
    if (dtype == Dtype::float64)
        products_of_pairs(static_cast<const double*>(weight), static_cast<const double*>(center), rows, d,
                          first, last, static_cast<double*>(products));
    else
        products_of_pairs(static_cast<const float*>(weight), static_cast<const float*>(center), rows, d,
                          first, last, static_cast<float*>(products));
}

void pack_covariance(Dtype moment_dtype, Dtype packed_dtype, const void* moments, const void* mean,
                     std::int64_t tokens, std::int64_t d, std::int64_t first, std::int64_t last,
                     void* packed) {
    if (moment_dtype == Dtype::float64)
        subtract_means(static_cast<const double*>(moments), static_cast<const double*>(mean), tokens, d,
                       first, last, static_cast<double*>(packed));
    else if (packed_dtype == Dtype::float32)
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
