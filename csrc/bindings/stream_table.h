// The tables that Python describes streams with: int64 arrays on the host, one row per stream.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "hvp/reorthogonalize.h"

namespace hvp {

using Table = pybind11::array_t<std::int64_t, pybind11::array::c_style>;

// Columns: basis address, vector address, row stride, size, count, basis type, vector type.
constexpr pybind11::ssize_t kStreamFields = 7;

inline void check_shape(const Table& table, pybind11::ssize_t fields) {
    check_aligned(table);
    if (table.ndim() != 2 || table.shape(0) < 1 || table.shape(1) != fields)
        refuse("The table must be (streams, " + std::to_string(fields) + ") with at least one stream.");
}

inline Dtype basis_dtype(std::int64_t number) { return checked_dtype(number); }
inline Dtype vector_dtype(std::int64_t number) { return checked_dtype(number, Dtype::float64); }

// The type of the rows that a projection reads; 8 bits with scales are for the kernels of the host only.
template <class Within>
Dtype row_dtype(std::int64_t number) {
    const bool is_scaled = number == static_cast<std::int64_t>(Dtype::scaled8);
    if (std::is_same_v<Within, Address> && is_scaled) return Dtype::scaled8;
    return basis_dtype(number);
}

// Addresses lie in the memory that Within (Address or DeviceAddress) stands for.
template <class Within>
Within address_in(std::int64_t field) {
    return Within(static_cast<std::uintptr_t>(field));
}

template <class Within>
std::vector<ReorthogonalizeStream> streams_of(const Table& table) {
    check_shape(table, kStreamFields);
    std::vector<ReorthogonalizeStream> streams;
    for (pybind11::ssize_t s = 0; s < table.shape(0); ++s) {
        const std::int64_t* f = table.data(s, 0);
        const std::int64_t row_stride = f[2], size = f[3], count = f[4];
        if (size < 1 || count < 0)
            refuse("Stream " + std::to_string(s) + " needs a size of at least 1 and a count of at least 0.");
        const Dtype of_basis = row_dtype<Within>(f[5]), of_vector = vector_dtype(f[6]);
        const std::int64_t row = of_basis == Dtype::scaled8 ? scaled_row_bytes(checked_size(size)) : size;
        if (count > 1 && row_stride < row) refuse("The rows of a basis overlap.");
        streams.push_back(
            {address_in<Within>(f[0]).required("a basis", of_basis, reach({{count, row_stride}, {row, 1}})),
             address_in<Within>(f[1]).required("a vector", of_vector, size), row_stride, size, count,
             of_basis, of_vector});
    }
    return streams;
}

constexpr const char* kMixedTypes =
    "Corrections of last rows that have another type than the vectors cannot be postponed.";

inline ReorthogonalizeRule checked_rule(const ReorthogonalizeRule& rule,
                                        const std::vector<ReorthogonalizeStream>& streams) {
    for (const ReorthogonalizeStream& stream : streams)
        if (rule.postpones() && stream.basis_type != stream.vector_type) refuse(kMixedTypes);
    return rule;
}

}  // namespace hvp
