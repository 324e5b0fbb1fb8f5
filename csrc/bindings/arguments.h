// What bindings make of their arguments. An address becomes a pointer only together with how far the kernel
// reaches from it, so that no binding can pass one on unchecked: null and misaligned ones, negative sizes and
// products that overflow are exceptions. All checks take constant time.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "hvp/dtype.h"

namespace hvp {

// A process has no more bytes: a number of elements up to here, times their size, cannot overflow.
constexpr std::int64_t kMostElements = std::int64_t{1} << 47;

[[noreturn]] inline void refuse(const std::string& text) { throw std::invalid_argument(text); }

// The numbers up to `last` are allowed.
inline Dtype checked_dtype(std::int64_t number, Dtype last = Dtype::bfloat16) {
    if (number < 0 || number > static_cast<std::int64_t>(last))
        refuse("Dtype number " + std::to_string(number) + " is not allowed here; use 0 to " +
               std::to_string(static_cast<std::int64_t>(last)) + " (hvp/dtype.h).");
    return static_cast<Dtype>(number);
}

inline std::int64_t bytes_of(Dtype type) {
    constexpr std::int64_t kBytes[] = {4, 8, 2, 1, 1};
    return kBytes[static_cast<std::int64_t>(type)];
}

inline Dtype accumulator_of(Dtype type) { return type == Dtype::float64 ? type : Dtype::float32; }

// A size, a stride, or a number of elements.
inline std::int64_t checked_size(std::int64_t size) {
    if (size < 0) refuse("Sizes and strides must not be negative, and one is " + std::to_string(size) + ".");
    if (size > kMostElements)
        refuse("No memory has " + std::to_string(size) + " elements; a size or a stride is wrong.");
    return size;
}

// Neither is negative, nor more than kMostElements.
inline std::int64_t checked_product(std::int64_t a, std::int64_t b) {
    std::int64_t product = 0;
    if (__builtin_mul_overflow(a, b, &product) || product > kMostElements)
        refuse("No memory has " + std::to_string(a) + " x " + std::to_string(b) +
               " elements; one of the sizes is wrong.");
    return product;
}

// Elements of a contiguous tensor. The other sizes of an empty one are held to the same limit: loops run over
// them.
inline std::int64_t elements(std::initializer_list<std::int64_t> sizes) {
    std::int64_t product = 1;
    bool empty = false;
    for (const std::int64_t size : sizes) {
        empty = empty || checked_size(size) == 0;
        product = checked_product(product, size == 0 ? 1 : size);
    }
    return empty ? 0 : product;
}

// `size` places that lie `stride` elements apart.
struct Dimension {
    std::int64_t size, stride;
};

// Elements from the first to the last of a strided tensor, gaps included; 0 if it has none.
template <class Dimensions>
std::int64_t reach(const Dimensions& dimensions) {
    std::int64_t last = 0;
    bool empty = false;
    for (const Dimension& d : dimensions) {
        (void)checked_size(d.stride);
        if (checked_size(d.size) == 0)
            empty = true;
        else
            last = checked_size(last + checked_product(d.size - 1, d.stride));
    }
    return empty ? 0 : checked_size(last + 1);
}
inline std::int64_t reach(std::initializer_list<Dimension> dimensions) {
    return reach<std::initializer_list<Dimension>>(dimensions);
}

// An address as Python gives it, in an address space of kBits bits. Absent tensors are null where a kernel
// does without them, and any address will do where it touches no element.
template <int kBits>
class AddressWithin {
  public:
    AddressWithin() = default;
    explicit AddressWithin(std::uintptr_t value) : value_(value) {}

    bool null() const { return value_ == 0; }

    void* required(const char* name, Dtype type, std::int64_t elements) const {
        check(name, bytes_of(type), bytes_of(type), elements);
        return reinterpret_cast<void*>(value_);
    }
    void* optional(const char* name, Dtype type, std::int64_t elements) const {
        return null() ? nullptr : required(name, type, elements);
    }
    template <class T>
    T* required(const char* name, std::int64_t elements) const {
        check(name, sizeof(T), alignof(T), elements);
        return reinterpret_cast<T*>(value_);
    }

  private:
    static constexpr std::uintptr_t kFirst = 4096;  // the page at null belongs to nobody
    static constexpr std::uintptr_t kEnd = std::uintptr_t{1} << kBits;

    // elements: of a contiguous tensor, or its reach.
    void check(const char* name, std::uintptr_t bytes, std::uintptr_t alignment,
               std::int64_t elements) const {
        if (elements == 0) return;
        if (value_ < kFirst) refuse(about(name) + "is null, and the tensor is needed.");
        if (value_ % alignment != 0)
            refuse(about(name) + "is not a multiple of " + std::to_string(alignment) + " bytes.");
        if (value_ >= kEnd || static_cast<std::uintptr_t>(elements) > (kEnd - value_) / bytes)
            refuse(about(name) + "and its sizes lead out of the memory of a process.");
    }
    static std::string about(const char* name) { return "The address of " + std::string(name) + " "; }

    std::uintptr_t value_ = 0;
};

using Address = AddressWithin<47>;        // of the host
using DeviceAddress = AddressWithin<57>;  // as wide as GPUs have them

// pybind11's own checks of NumPy arrays say nothing about alignment.
template <class... Arrays>
void check_aligned(const Arrays&... arrays) {
    const bool all =
        (... &&
         (reinterpret_cast<std::uintptr_t>(arrays.data()) % alignof(typename Arrays::value_type) == 0));
    if (!all) refuse("An array is not aligned; copy it.");
}

}  // namespace hvp

template <int kBits>
struct pybind11::detail::type_caster<hvp::AddressWithin<kBits>> {
    PYBIND11_TYPE_CASTER(hvp::AddressWithin<kBits>, const_name("int"));

    bool load(handle source, bool convert) {
        make_caster<std::uintptr_t> number;
        if (!number.load(source, convert)) return false;
        value = hvp::AddressWithin<kBits>(cast_op<std::uintptr_t>(number));
        return true;
    }
};
