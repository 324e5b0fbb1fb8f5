// What bindings make of their arguments: typed pointers of raw addresses, and checks of dtype numbers and
// sizes.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>

#include "hvp/element.h"

namespace hvp {

using Address = std::uintptr_t;  // 0 stands for an absent tensor

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

inline Dtype checked_dtype(int dtype) {
    if (dtype < 0 || dtype > static_cast<int>(Dtype::bf16))
        throw std::invalid_argument("unknown dtype number");
    return static_cast<Dtype>(dtype);
}

inline void check_sizes(std::initializer_list<std::int64_t> sizes) {
    for (const std::int64_t size : sizes)
        if (size < 0) throw std::invalid_argument("sizes must not be negative");
}

}  // namespace hvp
