// Raw addresses and dtype numbers from Python, turned into typed pointers.
#pragma once

#include <cstdint>
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

}  // namespace hvp
