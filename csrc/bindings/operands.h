// Checked operands of the element-wise kernels: equal groups that follow each other, or one that serves all.
#pragma once

#include <cstdint>

#include "arguments.h"
#include "hvp/operand.h"

namespace hvp {

// `batch` groups of `size` contiguous elements. Outputs lie without gaps.
struct Groups {
    Dtype type;
    std::int64_t batch, size;

    Groups(Dtype element_type, std::int64_t groups, std::int64_t group_size)
        : type(element_type), batch(groups), size(group_size), elements_(elements({groups, group_size})) {}

    bool empty() const { return elements_ == 0; }

    Operand input(const char* name, Address address, std::int64_t stride) const {
        return {address.required(name, type, reach({{batch, stride}, {size, 1}})), stride};
    }
    Operand optional_input(const char* name, Address address, std::int64_t stride) const {
        return address.null() ? Operand{nullptr, 0} : input(name, address, stride);
    }
    void* output(const char* name, Address address) const { return address.required(name, type, elements_); }
    void* optional_output(const char* name, Address address) const {
        return address.optional(name, type, elements_);
    }

  private:
    std::int64_t elements_;
};

}  // namespace hvp
