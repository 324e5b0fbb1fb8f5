// Inner loops of reorthogonalize.cpp: dots with, and updates by, a few basis rows on one column panel.
// The panel of the vector is held in fp64. Each group of columns is kept in the order in which its basis type
// unpacks (bf16: even columns, then odd ones), so that no shuffle is needed on the basis, which is long.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "element.h"

namespace hvp {
namespace HVP_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8;  // basis rows per pass over the panel: as many sums as the registers hold
#elif defined(__AVX2__)
constexpr int kRows = 4;
#else
constexpr int kRows = 2;
#endif

struct Bf16BesideFp64 : Bf16 {};  // the same numbers, unpacked for arithmetic in fp64

using Float8 = float __attribute__((vector_size(32)));
using Double8 = double __attribute__((vector_size(64)));
using Word8 = std::uint32_t __attribute__((vector_size(32)));
// What one load of bf16 unpacks into, twice. Beside fp32, half registers take twice the instructions, and the
// fused pass is bound by them.
#if defined(__AVX512F__)
using Unpacked = float __attribute__((vector_size(64)));
using Words = std::uint32_t __attribute__((vector_size(64)));
#else
using Unpacked = Float8;
using Words = Word8;
#endif

// Columns unpacked at once.
template <typename Q>
constexpr std::int64_t kGroup = 16;
template <>
constexpr std::int64_t kGroup<Bf16> = 2 * sizeof(Unpacked) / sizeof(float);

template <typename Q>
constexpr bool kIsBf16 = std::is_base_of_v<Bf16, Q>;

// Columns per step of the inner loops: whole groups, and at least one cache line.
template <typename Q>
constexpr std::int64_t kStep = sizeof(Q) < 4 ? 64 / sizeof(Q) : kGroup<Q>;

inline __attribute__((always_inline)) void convert(const Float8& x, Double8& y) {
#if defined(__AVX512F__)
    y = _mm512_maskz_cvtps_pd(0xff, x);  // __builtin_convertvector becomes two halves and an insertion
#else
    y = __builtin_convertvector(x, Double8);
#endif
}
inline __attribute__((always_inline)) void convert(const Float8& x, Float8& y) { y = x; }
inline __attribute__((always_inline)) void convert(const Double8& x, Double8& y) { y = x; }
#if defined(__AVX512F__)
inline __attribute__((always_inline)) void convert(const Unpacked& x, Unpacked& y) { y = x; }
#endif

// Calls visit with the octets of a vector in fp64.
template <typename V, typename Visit>
inline __attribute__((always_inline)) void octets(const V& x, Visit visit) {
    if constexpr (sizeof(V) == sizeof(Float8) || sizeof(x[0]) == 8) {
        Double8 wide;
        convert(x, wide);
        visit(0, wide);
    } else {
        Float8 half[2];
        Double8 wide;
        std::memcpy(half, &x, sizeof x);
        convert(half[0], wide);
        visit(0, wide);
        convert(half[1], wide);
        visit(8, wide);
    }
}

// A group of basis columns as two halves, in fp32 where that is exact.
template <typename Q>
struct Group {
    using Half = Float8;
};
template <>
struct Group<Bf16> {
    using Half = Unpacked;
};
template <>
struct Group<double> {
    using Half = Double8;
};

// An element in the type of its arithmetic.
template <typename Q>
inline auto widen(Q x) {
    return load(&x);
}

template <typename Q>
inline __attribute__((always_inline)) void unpack(const Q* q, typename Group<Q>::Half& low,
                                                  typename Group<Q>::Half& high) {
    if constexpr (kIsBf16<Q>) {
        std::conditional_t<sizeof low == sizeof(Word8), Word8, Words> words;
        std::memcpy(&words, q, sizeof words);
        const auto even = words << 16;
        const auto odd = words & 0xffff0000u;
        std::memcpy(&low, &even, sizeof low);
        std::memcpy(&high, &odd, sizeof high);
    } else {
        std::memcpy(&low, q, sizeof low);
        std::memcpy(&high, q + kGroup<Q> / 2, sizeof high);
    }
}

// Where column `j` of a step is kept in the panel.
template <typename Q>
inline std::int64_t slot(std::int64_t j) {
    if constexpr (!kIsBf16<Q>) return j;
    const std::int64_t group = j / kGroup<Q> * kGroup<Q>;
    return group + (j & 1) * (kGroup<Q> / 2) + ((j - group) >> 1);
}

template <typename Q, typename W, typename P>
void load_panel(const W* w, std::int64_t size, P* panel) {
    const std::int64_t whole = size - size % kStep<Q>;
    for (std::int64_t i = 0; i < whole; i += kStep<Q>)
        for (std::int64_t j = 0; j < kStep<Q>; ++j) panel[i + slot<Q>(j)] = static_cast<P>(w[i + j]);
    for (std::int64_t i = whole; i < size; ++i) panel[i] = static_cast<P>(w[i]);
    if constexpr (std::is_same_v<Q, Scaled8>)  // whose rows are filled up to whole blocks, with zeros
        for (std::int64_t i = size; i % kScaledBlock != 0; ++i) panel[i] = P{0};
}

// Writes the panel back and rounds it to what was written. Two loops, for the rounded values must come from
// memory: fused, GCC 12 drops the narrowing and widening pair in its AVX-512 code.
template <typename Q, typename W>
void store_panel(double* panel, std::int64_t size, W* w) {
    const std::int64_t whole = size - size % kStep<Q>;
    for (std::int64_t i = 0; i < whole; i += kStep<Q>)
        for (std::int64_t j = 0; j < kStep<Q>; ++j) w[i + j] = static_cast<W>(panel[i + slot<Q>(j)]);
    for (std::int64_t i = whole; i < size; ++i) w[i] = static_cast<W>(panel[i]);
    load_panel<Q>(w, size, panel);
}

template <typename Q>
double sum_of_squares(const double* panel, std::int64_t size) {
    const std::int64_t whole = size - size % kStep<Q>;
    double squares[kStep<Q>] = {};
    for (std::int64_t i = 0; i < whole; i += kStep<Q>)
        for (std::int64_t j = 0; j < kStep<Q>; ++j) squares[j] += panel[i + j] * panel[i + j];
    for (std::int64_t i = whole; i < size; ++i) squares[i - whole] += panel[i] * panel[i];
    double sum = 0.0;
    for (const double square : squares) sum += square;
    return sum;
}

// A window of some columns on the basis.
template <typename Q>
struct Window {
    const Q* data;
    std::int64_t stride;
    std::int64_t columns;

    Window from(std::int64_t row) const { return {data + row * stride, stride, columns}; }
};

template <typename Q>
inline __attribute__((always_inline)) void prefetch(const Q* q, std::int64_t ahead) {
    // As an integer: the address may lie outside the basis, where a prefetch does nothing.
    const auto address = reinterpret_cast<std::uintptr_t>(q) + static_cast<std::uintptr_t>(ahead) * sizeof(Q);
    __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
    if constexpr (sizeof(Q) > 4) __builtin_prefetch(reinterpret_cast<const void*>(address + 64), 0, 2);
}

// dots[r] += <row r, panel>. Meanwhile the memory `ahead` elements further on is fetched into the cache.
template <int R, typename Q>
void dot_rows(const Window<Q>& q, const double* panel, std::int64_t ahead, double* dots) {
    Double8 sums[R] = {};
    const std::int64_t whole = q.columns - q.columns % kStep<Q>;
    for (std::int64_t i = 0; i < whole; i += kStep<Q>) {
        for (int r = 0; r < R; ++r) prefetch(q.data + r * q.stride + i, ahead);
        for (std::int64_t j = i; j < i + kStep<Q>; j += kGroup<Q>) {
            Double8 low, high;
            std::memcpy(&low, panel + j, sizeof low);
            std::memcpy(&high, panel + j + kGroup<Q> / 2, sizeof high);
            for (int r = 0; r < R; ++r) {
                typename Group<Q>::Half a, b;
                Double8 x, y;
                unpack(q.data + r * q.stride + j, a, b);
                convert(a, x);
                convert(b, y);
                sums[r] += low * x;
                sums[r] += high * y;
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        double sum = 0.0;
        for (std::int64_t i = whole; i < q.columns; ++i)
            sum += panel[i] * static_cast<double>(widen(q.data[r * q.stride + i]));
        for (int lane = 0; lane < 8; ++lane) sum += sums[r][lane];
        dots[r] += sum;
    }
}

// The same with an fp32 panel and a bf16 basis, whose rounding is 2^15 times that of fp32: sums of kRun
// columns, eight products to a lane, are taken in fp32, everything beyond in fp64. Widening each product
// would cost more than the read of half-size rows leaves time for.
template <int R>
void dot_rows(const Window<Bf16>& q, const float* panel, std::int64_t ahead, double* dots) {
    using Q = Bf16;
    constexpr std::int64_t kRun = 8 * kGroup<Q>;
    Double8 sums[R] = {};
    const std::int64_t whole = q.columns - q.columns % kStep<Q>;
    for (std::int64_t begin = 0; begin < whole; begin += kRun) {
        const std::int64_t end = begin + kRun < whole ? begin + kRun : whole;
        Unpacked even[R] = {}, odd[R] = {};
        for (std::int64_t j = begin; j < end; j += kGroup<Q>) {
            if (j % kStep<Q> == 0)
                for (int r = 0; r < R; ++r) prefetch(q.data + r * q.stride + j, ahead);
            Unpacked low, high;
            std::memcpy(&low, panel + j, sizeof low);
            std::memcpy(&high, panel + j + kGroup<Q> / 2, sizeof high);
            for (int r = 0; r < R; ++r) {
                Unpacked a, b;
                unpack(q.data + r * q.stride + j, a, b);
                even[r] += low * a;
                odd[r] += high * b;
            }
        }
        for (int r = 0; r < R; ++r) {
            const auto add = [&](int, const Double8& wide) { sums[r] += wide; };
            octets(even[r], add);
            octets(odd[r], add);
        }
    }
    for (int r = 0; r < R; ++r) {
        double sum = 0.0;
        for (std::int64_t i = whole; i < q.columns; ++i)
            sum += static_cast<double>(panel[i]) * static_cast<double>(widen(q.data[r * q.stride + i]));
        for (int lane = 0; lane < 8; ++lane) sum += sums[r][lane];
        dots[r] += sum;
    }
}

template <typename V>
inline __attribute__((always_inline)) void subtract(const V& x, double* from) {
    octets(x, [&](int at, const Double8& wide) {
        Double8 before;
        std::memcpy(&before, from + at, sizeof before);
        before -= wide;
        std::memcpy(from + at, &before, sizeof before);
    });
}

// panel -= sum_r c[r] * row r; Half sets the precision of the sum over these few rows.
template <int R, typename Half, typename Q>
void subtract_rows(const Window<Q>& q, const double* c, std::int64_t ahead, double* panel) {
    using Scalar = decltype(Half{}[0] + Half{}[0]);
    Half factors[R];
    for (int r = 0; r < R; ++r) factors[r] = Half{} + static_cast<Scalar>(c[r]);
    const std::int64_t whole = q.columns - q.columns % kStep<Q>;
    for (std::int64_t i = 0; i < whole; i += kStep<Q>) {
        for (int r = 0; r < R; ++r) prefetch(q.data + r * q.stride + i, ahead);
        for (std::int64_t j = i; j < i + kStep<Q>; j += kGroup<Q>) {
            Half low = {}, high = {};
            for (int r = 0; r < R; ++r) {
                typename Group<Q>::Half a, b;
                Half x, y;
                unpack(q.data + r * q.stride + j, a, b);
                convert(a, x);
                convert(b, y);
                low += factors[r] * x;
                high += factors[r] * y;
            }
            subtract(low, panel + j);
            subtract(high, panel + j + kGroup<Q> / 2);
        }
    }
    for (std::int64_t i = whole; i < q.columns; ++i)
        for (int r = 0; r < R; ++r) panel[i] -= c[r] * static_cast<double>(widen(q.data[r * q.stride + i]));
}

}  // namespace
}  // namespace HVP_ISA
}  // namespace hvp
