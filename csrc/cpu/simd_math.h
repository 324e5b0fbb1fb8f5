// Elementary functions that the compiler can vectorise inside `#pragma omp simd` loops on any instruction
// set.
//
// Every function is branch-free (selects only), static and always inlined: each kernel translation unit owns
// its copy, so no copy built for a wider instruction set can be picked by the linker for another one. The
// polynomials are near-minimax (Chebyshev interpolation in 45 digits) on the ranges named beside them.
// Largest errors seen against 40 digits, in ulp, over all instruction sets and both types: exp 1.1, log 0.8,
// tanh 1.6, erf 1.5, sigmoid 1.9, normal distribution function 6 (relative, in its lower tail).
#pragma once

#include <cstdint>

namespace hvp {
namespace simd {

#define HVP_SIMD_INLINE static inline __attribute__((always_inline))

HVP_SIMD_INLINE std::uint32_t bits(float x) {
    std::uint32_t u;
    __builtin_memcpy(&u, &x, sizeof u);
    return u;
}
HVP_SIMD_INLINE std::uint64_t bits(double x) {
    std::uint64_t u;
    __builtin_memcpy(&u, &x, sizeof u);
    return u;
}
HVP_SIMD_INLINE float from_bits(std::uint32_t u) {
    float x;
    __builtin_memcpy(&x, &u, sizeof x);
    return x;
}
HVP_SIMD_INLINE double from_bits(std::uint64_t u) {
    double x;
    __builtin_memcpy(&x, &u, sizeof x);
    return x;
}

HVP_SIMD_INLINE float abs(float x) { return from_bits(bits(x) & 0x7fffffffu); }
HVP_SIMD_INLINE double abs(double x) { return from_bits(bits(x) & 0x7fffffffffffffff); }
HVP_SIMD_INLINE float copysign(float x, float s) {
    return from_bits((bits(x) & 0x7fffffffu) | (bits(s) & 0x80000000u));
}
HVP_SIMD_INLINE double copysign(double x, double s) {
    return from_bits((bits(x) & 0x7fffffffffffffff) | (bits(s) & 0x8000000000000000));
}

// c0 + x*(c1 + x*(c2 + ...))
template <class T>
HVP_SIMD_INLINE T polynomial(T, T c0) {
    return c0;
}
template <class T, class... C>
HVP_SIMD_INLINE T polynomial(T x, T c0, C... rest) {
    return c0 + x * polynomial(x, rest...);
}

// Adding and subtracting 1.5 * 2^(mantissa bits) rounds to an integer without the SSE4.1 instruction.
constexpr float kRoundF = 12582912.0f;
constexpr double kRoundD = 6755399441055744.0;

// 2^n for an integral n in the exponent range of normal numbers. The sum's low bits hold n + bias.
HVP_SIMD_INLINE float exp2_integer(float n) { return from_bits(bits(n + (kRoundF + 127.0f)) << 23); }
HVP_SIMD_INLINE double exp2_integer(double n) { return from_bits(bits(n + (kRoundD + 1023.0)) << 52); }

// exp = 2^n e^r with |r| <= log(2)/2; 2^n is applied in two halves so that overflow and subnormals come out
// right.
HVP_SIMD_INLINE float exp(float x) {
    x = x < -105.0f ? -105.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const float n = (x * 1.44269504f + kRoundF) - kRoundF;
    const float r = (x - n * 0.693145751953125f) - n * 1.42860677e-6f;
    const float p = 1.0f + (r + r * r *
                                    polynomial(r, 0x1.000000p-1f, 0x1.5554dcp-3f, 0x1.55551ap-5f,
                                               0x1.120b6ep-7f, 0x1.6d110ap-10f));
    const float half = (n * 0.5f + kRoundF) - kRoundF;
    return (p * exp2_integer(half)) * exp2_integer(n - half);
}
HVP_SIMD_INLINE double exp(double x) {
    x = x < -746.0 ? -746.0 : x;
    x = x > 710.0 ? 710.0 : x;
    const double n = (x * 0x1.71547652b82fep+0 + kRoundD) - kRoundD;
    const double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
    const double p =
        1.0 + (r + r * r *
                       polynomial(r, 0x1.0000000000000p-1, 0x1.5555555555557p-3, 0x1.5555555555556p-5,
                                  0x1.11111111100dcp-7, 0x1.6c16c16c162d4p-10, 0x1.a01a01abe7fe1p-13,
                                  0x1.a01a01a6d889cp-16, 0x1.71de0231960ebp-19, 0x1.27e4db646b17ep-22,
                                  0x1.af4de97ca4194p-26, 0x1.1f730349868cep-29));
    const double half = (n * 0.5 + kRoundD) - kRoundD;
    return (p * exp2_integer(half)) * exp2_integer(n - half);
}

// log = k log(2) + log(m), m in [sqrt(1/2), sqrt(2)); log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)), s = f / (2
// + f).
HVP_SIMD_INLINE float log(float x) {
    const bool small = x < 0x1p-126f;
    const float y = small ? x * 0x1p25f : x;
    const std::uint32_t u = bits(y) + (0x3f800000u - 0x3f3504f3u);
    const float k = from_bits((u >> 23) | 0x4b000000u) - (0x1p23f + 127.0f) - (small ? 25.0f : 0.0f);
    const float f = from_bits((u & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    const float s = f / (2.0f + f);
    const float z = s * s;
    const float r = z * polynomial(z, 0x1.555556p-1f, 0x1.9999ecp-2f, 0x1.245c28p-2f, 0x1.ddd4dap-3f);
    const float h = 0.5f * f * f;
    float result = s * (h + r) + k * 1.42860677e-6f - h + f + k * 0.693145751953125f;
    const float inf = __builtin_inff();
    result = x == inf ? inf : result;
    result = x == 0.0f ? -inf : result;
    return x >= 0.0f ? result : __builtin_nanf("");
}
HVP_SIMD_INLINE double log(double x) {
    const bool small = x < 0x1p-1022;
    const double y = small ? x * 0x1p54 : x;
    const std::uint64_t u = bits(y) + (0x3ff0000000000000 - 0x3fe6a09e667f3bcd);
    const double k = from_bits((u >> 52) | 0x4330000000000000) - (0x1p52 + 1023.0) - (small ? 54.0 : 0.0);
    const double f = from_bits((u & 0x000fffffffffffff) + 0x3fe6a09e667f3bcd) - 1.0;
    const double s = f / (2.0 + f);
    const double z = s * s;
    const double r = z * polynomial(z, 0x1.5555555555555p-1, 0x1.9999999999a39p-2, 0x1.2492492476a1ap-2,
                                    0x1.c71c7201a55d7p-3, 0x1.745cf8e4bba1bp-3, 0x1.3b1c3c1c81c8fp-3,
                                    0x1.0fbde0f4ad17bp-3, 0x1.0c0aff044a970p-3);
    const double h = 0.5 * f * f;
    double result = s * (h + r) + k * 0x1.a39ef35793c76p-33 - h + f + k * 0x1.62e42fee00000p-1;
    const double inf = __builtin_inf();
    result = x == inf ? inf : result;
    result = x == 0.0 ? -inf : result;
    return x >= 0.0 ? result : __builtin_nan("");
}

// Odd polynomial below 0.5625, 1 - 2 / (e^2|x| + 1) above.
HVP_SIMD_INLINE float tanh(float x) {
    const float a = abs(x);
    const float z = x * x;
    const float near = a + a * (z * polynomial(z, -0x1.555554p-2f, 0x1.110fb4p-3f, -0x1.b9902cp-5f,
                                               0x1.5c60f8p-6f, -0x1.aba8f0p-8f));
    const float far = 1.0f - 2.0f / (exp(2.0f * a) + 1.0f);
    return copysign(a < 0.5625f ? near : far, x);
}
HVP_SIMD_INLINE double tanh(double x) {
    const double a = abs(x);
    const double z = x * x;
    const double near =
        a + a * (z * polynomial(z, -0x1.555555555554ep-2, 0x1.111111110ecb6p-3, -0x1.ba1ba1b664a50p-5,
                                0x1.664f47545926dp-6, -0x1.226e045c3dbadp-7, 0x1.d6caa594b0f52p-9,
                                -0x1.7d1cb20370020p-10, 0x1.307f727df8166p-11, -0x1.be233c2573853p-13,
                                0x1.b8b1083b35507p-15));
    const double far = 1.0 - 2.0 / (exp(2.0 * a) + 1.0);
    return copysign(a < 0.5625 ? near : far, x);
}

HVP_SIMD_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }
HVP_SIMD_INLINE double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// erfc(x) e^(x^2) for 0 <= x <= 10.5 (float), 28 (double): a polynomial in t = (x - k) / (x + k) over 1 + 2x.
HVP_SIMD_INLINE float erfc_scaled(float x) {
    const float a = x + 3.0f;
    const float b = 1.0f + 2.0f * x;
    const float d = 1.0f / (a * b);
    const float t = (x - 3.0f) * b * d;
    return a * d *
           polynomial(t, 0x1.40c522p+0f, -0x1.15c08ap-3f, -0x1.85a16ap-5f, 0x1.098438p-3f, -0x1.e889acp-4f,
                      0x1.17ba6ep-4f, -0x1.85da0ep-6f, 0x1.51c0f4p-9f, 0x1.06604cp-9f, -0x1.9d33c6p-11f,
                      -0x1.1ee2dep-12f);
}
HVP_SIMD_INLINE double erfc_scaled(double x) {
    const double a = x + 3.75;
    const double b = 1.0 + 2.0 * x;
    const double d = 1.0 / (a * b);
    const double t = (x - 3.75) * b * d;
    return a * d *
           polynomial(
               t, 0x1.3ccda0b5d5dc3p+0, -0x1.1f367683f8999p-3, 0x1.d5f294814c429p-9, 0x1.510169d0959a6p-4,
               -0x1.bda9309a12926p-4, 0x1.7a14188abdd5bp-4, -0x1.e0d0fa7170685p-5, 0x1.d0b00373379bap-6,
               -0x1.3f603ba916a4fp-7, 0x1.cc3a14f0d0b43p-10, 0x1.33fac1c4eb5a5p-12, -0x1.304044cf60197p-12,
               0x1.b14e9545f8638p-15, 0x1.77b20dca86f96p-16, -0x1.8056993612ed0p-17, -0x1.0b1cb2697b68ep-20,
               0x1.d8c812a1bfbe9p-20, -0x1.bab018c6a277ap-26, -0x1.15dc4abd2a820p-22, -0x1.56c56a604ba9dp-29,
               0x1.0846addb0c29fp-25, 0x1.7f28b7706a46dp-28);
}

// x + x P(x^2) below 1, 1 - erfc above.
HVP_SIMD_INLINE float erf(float x) {
    float a = abs(x);
    a = a > 10.0f ? 10.0f : a;
    const float z = a * a;
    const float near = a + a * polynomial(z, 0x1.06eba8p-3f, -0x1.81273ep-2f, 0x1.ce2d10p-4f, -0x1.b7fabap-6f,
                                          0x1.541270p-8f, -0x1.a45088p-11f, 0x1.4a5690p-14f);
    const float far = 1.0f - exp(-z) * erfc_scaled(a);
    return copysign(a < 1.0f ? near : far, x);
}
HVP_SIMD_INLINE double erf(double x) {
    double a = abs(x);
    a = a > 27.0 ? 27.0 : a;
    const double z = a * a;
    const double near =
        a + a * polynomial(z, 0x1.06eba8214db69p-3, -0x1.812746b0379e6p-2, 0x1.ce2f21a042b30p-4,
                           -0x1.b82ce31284e00p-6, 0x1.565bcd0dbaa38p-8, -0x1.c02db3dac435fp-11,
                           0x1.f9a321d5b8e1ep-14, -0x1.f4d1e3183f7aep-17, 0x1.b9df224ca4b97p-20,
                           -0x1.5f1ecb6f0764cp-23, 0x1.f7b4bf3b13964p-27, -0x1.389d4f2641625p-30,
                           0x1.05ffd737fb32ep-34);
    const double far = 1.0 - exp(-z) * erfc_scaled(a);
    return copysign(a < 1.0 ? near : far, x);
}

// Standard normal density and distribution function from one exponential; cdf keeps relative accuracy in both
// tails.
template <class T>
HVP_SIMD_INLINE void normal(T x, T limit, T* pdf, T* cdf) {
    T a = abs(x);
    a = a > limit ? limit : a;
    const T e = exp(T(-0.5) * a * a);
    const T lower = T(0.5) * e * erfc_scaled(a * T(0.70710678118654752440));
    *pdf = T(0.39894228040143267794) * e;
    *cdf = x < T(0) ? lower : T(1) - lower;
}
HVP_SIMD_INLINE void normal_pdf_cdf(float x, float* pdf, float* cdf) { normal(x, 14.5f, pdf, cdf); }
HVP_SIMD_INLINE void normal_pdf_cdf(double x, double* pdf, double* cdf) { normal(x, 38.7, pdf, cdf); }

}  // namespace simd
}  // namespace hvp
