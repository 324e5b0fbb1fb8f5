// Eight independent chains of xor, multiplication and rotation over chunks of the memory: a multiplication
// per cycle, which is more than memory delivers. Each step is one-to-one in the word and in the chain, so a
// single changed word cannot be lost; the rotation brings high bits down, without which two changed signs
// would cancel.
#include "hvp/fingerprint.h"

#include <cstring>

#include "grains.h"
#include "parallel.h"

namespace hvp {
namespace {

constexpr std::uint64_t kChunk = 1 << 20;  // bytes that one thread takes at a time
constexpr std::uint64_t kChains = 8;
constexpr std::uint64_t kBlock = kChains * sizeof(std::uint64_t);
constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15u;  // both odd and without pattern
constexpr std::uint64_t kOther = 0xd6e8feb86659fd93u;

inline std::uint64_t step(std::uint64_t chain, std::uint64_t word) {
    const std::uint64_t product = (chain ^ word) * kOdd;
    return product << 29 | product >> 35;
}

// One-to-one, and every bit of the result depends on every bit of x.
inline std::uint64_t scatter(std::uint64_t x) {
    x = (x ^ x >> 32) * kOther;
    x = (x ^ x >> 29) * kOdd;
    return x ^ x >> 32;
}

// Unrolled, so that the chains stay in registers.
inline __attribute__((always_inline)) void take_block(const unsigned char* from, std::uint64_t* chains) {
#pragma GCC unroll 8
    for (std::uint64_t c = 0; c < kChains; ++c) {
        std::uint64_t word;
        std::memcpy(&word, from + c * sizeof word, sizeof word);
        chains[c] = step(chains[c], word);
    }
}

std::uint64_t of_chunk(const unsigned char* from, std::uint64_t bytes, std::uint64_t number) {
    std::uint64_t chains[kChains];
#pragma GCC unroll 8
    for (std::uint64_t c = 0; c < kChains; ++c) chains[c] = scatter(number * kChains + c + 1);
    std::uint64_t done = 0;
    for (; done + kBlock <= bytes; done += kBlock) take_block(from + done, chains);
    if (done < bytes) {  // missing bytes count as zeros
        unsigned char last[kBlock] = {};
        std::memcpy(last, from + done, bytes - done);
        take_block(last, chains);
    }
    std::uint64_t all = bytes;
#pragma GCC unroll 8
    for (std::uint64_t c = 0; c < kChains; ++c) all = step(all, chains[c]);
    return scatter(all);
}

}  // namespace

std::uint64_t fingerprint(const void* data, std::uint64_t bytes) {
    const auto* from = static_cast<const unsigned char*>(data);
    const auto chunks = static_cast<std::int64_t>((bytes + kChunk - 1) / kChunk);
    std::uint64_t total = scatter(bytes);
    if (chunks <= 1) return total + of_chunk(from, bytes, 0);
    parallel_for(chunks, static_cast<double>(bytes), grain::kFingerprint, [&](std::int64_t chunk) {
        const std::uint64_t start = static_cast<std::uint64_t>(chunk) * kChunk;
        const std::uint64_t left = bytes - start;
        const std::uint64_t part =
            of_chunk(from + start, left < kChunk ? left : kChunk, static_cast<std::uint64_t>(chunk));
        __atomic_fetch_add(&total, part, __ATOMIC_RELAXED);  // modulo 2^64: in any order the same
    });
    return total;
}

}  // namespace hvp
