// Element types of tensors: how a kernel reads and writes them, and the type in which it computes.
#pragma once

#include <cstdint>

#include "hvp/simd_math.h"

namespace hvp {

struct BFloat16 {
    std::uint16_t bits;
};

template <class T>
struct Compute {
    using type = T;
};
template <>
struct Compute<BFloat16> {
    using type = float;
};
template <class T>
using ComputeType = typename Compute<T>::type;

HVP_SIMD_INLINE float load(const float* p) { return *p; }
HVP_SIMD_INLINE double load(const double* p) { return *p; }
HVP_SIMD_INLINE float load(const BFloat16* p) { return simd::from_bits(std::uint32_t(p->bits) << 16); }

HVP_SIMD_INLINE void store(float* p, float x) { *p = x; }
HVP_SIMD_INLINE void store(double* p, double x) { *p = x; }
// Rounds to nearest even; a NaN stays one (its payload could round to an infinity).
HVP_SIMD_INLINE void store(BFloat16* p, float x) {
    const std::uint32_t u = simd::bits(x);
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    p->bits = static_cast<std::uint16_t>(x != x ? 0x7fc0u : rounded);
}

}  // namespace hvp
