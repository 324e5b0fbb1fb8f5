// One large read per thread, with as little arithmetic as possible.
#include "hvp/read_floor.h"

#include <cstring>

namespace hvp {
namespace HVP_ISA {

std::int64_t read_sum(const float* data, std::int64_t size) {
    constexpr std::int64_t kChunk = 1 << 18;
    std::int64_t total = 0;
#pragma omp parallel for schedule(static) reduction(+ : total)
    for (std::int64_t begin = 0; begin < size; begin += kChunk) {
        const std::int64_t end = size - begin < kChunk ? size : begin + kChunk;
        std::uint32_t sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t i = begin; i < end; ++i) {
            std::uint32_t bits;
            std::memcpy(&bits, data + i, sizeof bits);
            sum += bits;
        }
        total += sum;
    }
    return total;
}

}  // namespace HVP_ISA
}  // namespace hvp
