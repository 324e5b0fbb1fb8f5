// What the bindings of all CUDA kernels share: errors as exceptions, and host-side plans for the device.
// Addresses are device addresses; the caller copies the plans' entries there.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "arguments.h"
#include "hvp/cuda/device.h"

namespace hvp {
namespace cuda {

inline void check(const char* error) {
    if (error != nullptr) throw std::runtime_error(error);
}

// The runtime refuses unknown devices itself, but follows any handle: those that can be none are refused
// here.
inline Queue queue(int device, std::uintptr_t stream) {
    constexpr std::uintptr_t kNamed = 2;  // the legacy stream and the threads' own have numbers, as null has
    struct alignas(8) Handle {};
    if (stream > kNamed) (void)Address(stream).required<Handle>("the stream", 1);
    return {device, reinterpret_cast<StreamHandle>(stream)};
}

// The entries as an int64 array.
template <typename Entry>
pybind11::array_t<std::int64_t> words_of(const std::vector<Entry>& entries) {
    constexpr std::size_t kWord = sizeof(std::int64_t);
    static_assert(sizeof(Entry) % kWord == 0, "entries are copied as 64-bit words");
    pybind11::array_t<std::int64_t> words({entries.size(), sizeof(Entry) / kWord});
    std::memcpy(words.mutable_data(), entries.data(), entries.size() * sizeof(Entry));
    return words;
}

}  // namespace cuda
}  // namespace hvp
