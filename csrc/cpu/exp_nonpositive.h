// exp of arguments that are not (much) above zero, as in every softmax: a third fewer instructions than
// simd::exp. Results below the smallest normal number are zero. Included by kernel sources only.
#pragma once

#include "simd_math.h"

namespace hvp {
namespace simd {

HVP_SIMD_INLINE float exp_nonpositive(float x) {
    const float n = (x * 1.44269504f + kRoundF) - kRoundF;
    const float r = (x - n * 0.693145751953125f) - n * 1.42860677e-6f;
    const float p = 1.0f + (r + r * r *
                                    polynomial(r, 0x1.000000p-1f, 0x1.5554dcp-3f, 0x1.55551ap-5f,
                                               0x1.120b6ep-7f, 0x1.6d110ap-10f));
    return x < -87.0f ? 0.0f : p * exp2_integer(n);
}
// Doubles are no bottleneck.
HVP_SIMD_INLINE double exp_nonpositive(double x) { return exp(x); }

}  // namespace simd
}  // namespace hvp
