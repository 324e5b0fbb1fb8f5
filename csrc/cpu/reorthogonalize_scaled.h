// The inner loops of reorthogonalize_panel.h for a basis of 8 bits with scales (hvp/dtype.h). Its numbers are
// widened in registers as they are read, and a block's scale is multiplied in once: after the dots of the
// block, and into the factors of its update. The panel keeps its columns in order and is filled up to whole
// blocks.
#pragma once

#include "reorthogonalize_panel.h"

namespace hvp {
namespace HVP_ISA {
namespace {

template <>
struct Window<Scaled8> {
    const Scaled8* data;
    const Scaled8* scales;  // of the first column's block
    std::int64_t stride;
    std::int64_t columns;

    Window from(std::int64_t row) const {
        return {data + row * stride, scales + row * stride, stride, columns};
    }
    std::int64_t blocks() const { return scaled_blocks(columns); }
    float scale(std::int64_t row, std::int64_t block) const {
        float x;
        std::memcpy(&x, scales + row * stride + block * static_cast<std::int64_t>(sizeof x), sizeof x);
        return x;
    }
};

// A window on `columns` columns from `column` on, which begins a block.
inline Window<Scaled8> scaled_window(const Scaled8* basis, std::int64_t stride, std::int64_t size,
                                     std::int64_t column, std::int64_t columns) {
    const Scaled8* scales = basis + scaled_blocks(size) * kScaledBlock;
    const std::int64_t bytes = column / kScaledBlock * static_cast<std::int64_t>(sizeof(float));
    return {basis + column, scales + bytes, stride, columns};
}

using Bytes8 = std::int8_t __attribute__((vector_size(8)));
using Bytes16 = std::int8_t __attribute__((vector_size(16)));

inline __attribute__((always_inline)) void widen_bytes(const Scaled8* q, Float8& y) {
    Bytes8 x;
    std::memcpy(&x, q, sizeof x);
#if defined(__AVX2__)
    std::int64_t word;
    std::memcpy(&word, q, sizeof word);
    y = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(word)));
#else
    y = __builtin_convertvector(x, Float8);
#endif
}
#if defined(__AVX512F__)
inline __attribute__((always_inline)) void widen_bytes(const Scaled8* q, Unpacked& y) {
    __m128i x;
    std::memcpy(&x, q, sizeof x);
    y = _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, x));
}
#endif
inline __attribute__((always_inline)) void widen_bytes(const Scaled8* q, Double8& y) {
    Float8 x;
    widen_bytes(q, x);
    convert(x, y);
}

// Numbers of a panel that a register, or two of them, takes at once.
template <typename P>
struct Lanes {
    using Type = Double8;
};
template <>
struct Lanes<float> {
    using Type = Unpacked;
};

template <int R, typename P>
void scaled_dots(const Window<Scaled8>& q, const P* panel, std::int64_t ahead, double* dots) {
    using V = typename Lanes<P>::Type;
    constexpr std::int64_t kLanes = sizeof(V) / sizeof(P);
    Double8 sums[R] = {};
    for (std::int64_t block = 0; block < q.blocks(); ++block) {
        const std::int64_t begin = block * kScaledBlock;
        V own[R] = {};
        for (std::int64_t j = begin; j < begin + kScaledBlock; j += kLanes) {
            if (j % kStep<Scaled8> == 0)
                for (int r = 0; r < R; ++r) prefetch(q.data + r * q.stride + j, ahead);
            V x;
            std::memcpy(&x, panel + j, sizeof x);
            for (int r = 0; r < R; ++r) {
                V y;
                widen_bytes(q.data + r * q.stride + j, y);
                own[r] += x * y;
            }
        }
        for (int r = 0; r < R; ++r) {
            const double scale = static_cast<double>(q.scale(r, block));
            octets(own[r], [&](int, const Double8& wide) { sums[r] += scale * wide; });
        }
    }
    for (int r = 0; r < R; ++r) {
        double sum = 0.0;
        for (int lane = 0; lane < 8; ++lane) sum += sums[r][lane];
        dots[r] += sum;
    }
}

// dots[r] += <row r, panel>; see dot_rows of other rows. With an fp32 panel the sums of one block, at most 16
// products to a lane, are taken in fp32, everything beyond in fp64.
template <int R>
void dot_rows(const Window<Scaled8>& q, const float* panel, std::int64_t ahead, double* dots) {
    scaled_dots<R>(q, panel, ahead, dots);
}
template <int R>
void dot_rows(const Window<Scaled8>& q, const double* panel, std::int64_t ahead, double* dots) {
    scaled_dots<R>(q, panel, ahead, dots);
}

// panel -= sum_r c[r] * row r; Half sets the precision of the sum over these few rows.
template <int R, typename Half>
void subtract_rows(const Window<Scaled8>& q, const double* c, std::int64_t ahead, double* panel) {
    using Scalar = decltype(Half{}[0] + Half{}[0]);
    constexpr std::int64_t kLanes = sizeof(Half) / sizeof(Scalar);
    for (std::int64_t block = 0; block < q.blocks(); ++block) {
        const std::int64_t begin = block * kScaledBlock;
        Half factors[R];
        for (int r = 0; r < R; ++r)
            factors[r] = Half{} + static_cast<Scalar>(c[r] * static_cast<double>(q.scale(r, block)));
        for (std::int64_t j = begin; j < begin + kScaledBlock; j += kLanes) {
            if (j % kStep<Scaled8> == 0)
                for (int r = 0; r < R; ++r) prefetch(q.data + r * q.stride + j, ahead);
            Half sum = {};
            for (int r = 0; r < R; ++r) {
                Half x;
                widen_bytes(q.data + r * q.stride + j, x);
                sum += factors[r] * x;
            }
            subtract(sum, panel + j);
        }
    }
}

}  // namespace
}  // namespace HVP_ISA
}  // namespace hvp
