// Small matrix products on packed tiles, for the attention kernels. Compiled once per instruction set.
//
// Register blocking: C[kRows x (panels * lanes)] stays in registers over the whole depth; the right operand
// is read as vectors, the left one as broadcast scalars with any strides, so that A B and A^T B need no
// transposed copy.
#pragma once

#include <cstdint>

namespace hvp {
namespace HVP_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kPanels = 4;  // 6 x 4 accumulators, 4 operands: 28 of 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kPanels = 2;  // 6 x 2 accumulators, 2 operands, 1 broadcast: 15 of 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kPanels = 2;
#endif
constexpr int kRows = 6;
// A panel of the right operand of this depth fits into the first-level cache; sums restart there, which also
// keeps their rounding error from growing with the depth.
constexpr std::int64_t kDepth = 96;

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};
template <class T>
constexpr std::int64_t kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// A matrix read element by element: (row, column) lies at data[row * row_stride + column * column_stride].
template <class T>
struct Scalars {
    const T* data;
    std::int64_t row_stride;
    std::int64_t column_stride;
};

template <class T, int ROWS, int PANELS>
void multiply_block(std::int64_t depth, Scalars<T> a, const T* b, std::int64_t b_stride, T* c,
                    std::int64_t c_stride, bool add) {
    using Vector = typename VectorOf<T>::type;
    Vector sum[ROWS][PANELS] = {};
    const T* left = a.data;
    for (std::int64_t k = 0; k < depth; ++k) {
        Vector right[PANELS];
#pragma GCC unroll 8
        for (int p = 0; p < PANELS; ++p) right[p] = *reinterpret_cast<const Vector*>(b + p * kLanes<T>);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const T scalar = left[r * a.row_stride];
#pragma GCC unroll 8
            for (int p = 0; p < PANELS; ++p) sum[r][p] += scalar * right[p];
        }
        left += a.column_stride;
        b += b_stride;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
        for (int p = 0; p < PANELS; ++p) {
            Vector* target = reinterpret_cast<Vector*>(c + r * c_stride + p * kLanes<T>);
            *target = add ? *target + sum[r][p] : sum[r][p];
        }
    }
}

template <class T, int PANELS>
void multiply_panel(std::int64_t rows, std::int64_t depth, Scalars<T> a, const T* b, std::int64_t b_stride,
                    T* c, std::int64_t c_stride, bool add) {
    for (; rows >= kRows; rows -= kRows) {
        multiply_block<T, kRows, PANELS>(depth, a, b, b_stride, c, c_stride, add);
        a.data += kRows * a.row_stride;
        c += kRows * c_stride;
    }
    switch (rows) {
        case 5:
            return multiply_block<T, 5, PANELS>(depth, a, b, b_stride, c, c_stride, add);
        case 4:
            return multiply_block<T, 4, PANELS>(depth, a, b, b_stride, c, c_stride, add);
        case 3:
            return multiply_block<T, 3, PANELS>(depth, a, b, b_stride, c, c_stride, add);
        case 2:
            return multiply_block<T, 2, PANELS>(depth, a, b, b_stride, c, c_stride, add);
        case 1:
            return multiply_block<T, 1, PANELS>(depth, a, b, b_stride, c, c_stride, add);
        default:
            return;
    }
}

// C = A B, or C += A B when `add`. `columns` is a multiple of kLanes<T>; b and c have rows of contiguous
// columns.
template <class T>
void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, Scalars<T> a, const T* b,
              std::int64_t b_stride, T* c, std::int64_t c_stride, bool add) {
    constexpr std::int64_t wide = kPanels * kLanes<T>;
    for (std::int64_t k = 0; k < depth; k += kDepth) {
        const std::int64_t part = depth - k < kDepth ? depth - k : kDepth;
        const Scalars<T> left{a.data + k * a.column_stride, a.row_stride, a.column_stride};
        const T* right = b + k * b_stride;
        std::int64_t n = 0;
        for (; n + wide <= columns; n += wide) {
            multiply_panel<T, kPanels>(rows, part, left, right + n, b_stride, c + n, c_stride, add || k > 0);
        }
        for (; n < columns; n += kLanes<T>) {
            multiply_panel<T, 1>(rows, part, left, right + n, b_stride, c + n, c_stride, add || k > 0);
        }
    }
}

}  // namespace
}  // namespace HVP_ISA
}  // namespace hvp
