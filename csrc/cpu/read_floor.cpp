// One large read per thread, with as little arithmetic as possible.
#include "hvp/read_floor.h"

#include <cstring>

#include "grains.h"
#include "parallel.h"

namespace hvp {
namespace HVP_ISA {

std::int64_t read_sum(const float* data, std::int64_t size) {
    constexpr std::int64_t kChunk = 1 << 18;
    std::int64_t total = 0;
    const std::int64_t chunks = (size + kChunk - 1) / kChunk;
    parallel_for(chunks, static_cast<double>(size), grain::kRead, [&](std::int64_t chunk) {
        const std::int64_t begin = chunk * kChunk;
        const std::int64_t end = size - begin < kChunk ? size : begin + kChunk;
        std::uint32_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = begin; i < end; ++i) {
            std::uint32_t bits;
            std::memcpy(&bits, data + i, sizeof bits);
            sum += bits;
        }
        __atomic_fetch_add(&total, static_cast<std::int64_t>(sum), __ATOMIC_RELAXED);
    });
    return total;
}

}  // namespace HVP_ISA
}  // namespace hvp
