// What bindings make of their arguments: typed pointers of raw addresses, and checks of dtype numbers and
// sizes.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "hvp/dtype.h"

namespace hvp {

using Address = std::uintptr_t;  // 0 stands for an absent tensor

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// The numbers up to `last` are allowed.
inline Dtype checked_dtype(std::int64_t number, Dtype last = Dtype::bfloat16) {
    if (number < 0 || number > static_cast<std::int64_t>(last))
        throw std::invalid_argument("Dtype number " + std::to_string(number) +
                                    " is not allowed here; use 0 to " +
                                    std::to_string(static_cast<std::int64_t>(last)) + " (hvp/dtype.h).");
    return static_cast<Dtype>(number);
}

inline void check_sizes(std::initializer_list<std::int64_t> sizes) {
    for (const std::int64_t size : sizes)
        if (size < 0) throw std::invalid_argument("Sizes must not be negative.");
}

}  // namespace hvp
