// Sums and element conversions that the kernels share. Device code only: it must compile without host
// headers.
#pragma once

#include <cstdint>

#include "hvp/dtype.h"

namespace hvp {
namespace cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(Bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

__device__ inline void narrow(double x, float& to) { to = static_cast<float>(x); }
__device__ inline void narrow(double x, double& to) { to = x; }
// Through float, as PyTorch converts; to nearest even, and a NaN stays one.
__device__ inline void narrow(double x, Bf16& to) {
    const float single = static_cast<float>(x);
    const unsigned bits = __float_as_uint(single);
    const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to.bits = static_cast<std::uint16_t>(single != single ? 0x7fc0u : rounded);
}

// The sum over all lanes, in every lane, in an order that depends on nothing.
__device__ inline double warp_sum(double x) {
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(kAllLanes, x, distance);
    return x;
}

// The entry of a sorted table that task number `task` belongs to: the last one that starts at or before it.
template <typename Entry>
__device__ inline std::int64_t entry_of(const Entry* entries, std::int64_t num, std::int64_t task) {
    std::int64_t low = 0, high = num - 1;
    while (low < high) {
        const std::int64_t middle = (low + high + 1) / 2;
        if (entries[middle].first_task <= task) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

}  // namespace cuda
}  // namespace hvp
