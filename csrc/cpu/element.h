// Element types of the kernels: float, double and bfloat16, with the type each of them accumulates in.
// Included by kernel sources only.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"

namespace hvp {

template <class T>
struct Accumulator {
    using type = T;
};
template <>
struct Accumulator<Bf16> {
    using type = float;
};
template <class T>
using Acc = typename Accumulator<T>::type;

#define HVP_ELEMENT_INLINE static inline __attribute__((always_inline))

HVP_ELEMENT_INLINE float load(const float* p) { return *p; }
HVP_ELEMENT_INLINE double load(const double* p) { return *p; }
HVP_ELEMENT_INLINE float load(const Bf16* p) {
    const std::uint32_t u = static_cast<std::uint32_t>(p->bits) << 16;
    float x;
    __builtin_memcpy(&x, &u, sizeof x);
    return x;
}
HVP_ELEMENT_INLINE void store(float* p, float x) { *p = x; }
HVP_ELEMENT_INLINE void store(double* p, double x) { *p = x; }
// Rounds to nearest even; a NaN stays a NaN although its payload may live in the lower half.
HVP_ELEMENT_INLINE void store(Bf16* p, float x) {
    std::uint32_t u;
    __builtin_memcpy(&u, &x, sizeof u);
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    p->bits = static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// Calls function(T{}) with the element type that dtype names.
template <class Function>
HVP_ELEMENT_INLINE void with_dtype(Dtype dtype, Function function) {
    switch (dtype) {
        case Dtype::float32:
            return function(float{});
        case Dtype::float64:
            return function(double{});
        case Dtype::bfloat16:
            return function(Bf16{});
        case Dtype::boolean:  // only masks of attention are, only rows of a basis are scaled8,
        case Dtype::scaled8:  // and the bindings let no other in
            __builtin_unreachable();
    }
}

}  // namespace hvp
