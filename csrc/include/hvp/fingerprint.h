// A number that stands for the contents of memory, to see that they changed.
#pragma once

#include <cstdint>

namespace hvp {

// Depends on every bit of the bytes, on their places and on their number, and not on the address or the
// threads. A change within one aligned group of eight bytes always changes it; any other one, but for
// coincidences of 2^-64. Not made to withstand somebody who searches for them.
std::uint64_t fingerprint(const void* data, std::uint64_t bytes);

}  // namespace hvp
