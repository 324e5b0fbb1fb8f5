// The tables that Python describes streams with: int64 arrays on the host, one row per stream.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "arguments.h"
#include "hvp/reorthogonalize.h"

namespace hvp {

using Table = pybind11::array_t<std::int64_t, pybind11::array::c_style>;

// Columns: basis address, vector address, row stride, size, count, basis type, vector type.
constexpr pybind11::ssize_t kStreamFields = 7;

inline void check_shape(const Table& table, pybind11::ssize_t fields) {
    if (table.ndim() != 2 || table.shape(0) < 1 || table.shape(1) != fields)
        throw pybind11::value_error("The table must be (streams, " + std::to_string(fields) +
                                    ") with at least one stream.");
}

inline Dtype basis_dtype(std::int64_t number) { return checked_dtype(number); }
inline Dtype vector_dtype(std::int64_t number) { return checked_dtype(number, Dtype::float64); }

inline std::vector<ReorthogonalizeStream> streams_of(const Table& table) {
    check_shape(table, kStreamFields);
    std::vector<ReorthogonalizeStream> streams;
    for (pybind11::ssize_t s = 0; s < table.shape(0); ++s) {
        const std::int64_t* f = table.data(s, 0);
        if (f[3] < 1 || f[4] < 0)
            throw pybind11::value_error("Stream " + std::to_string(s) +
                                        " needs a size of at least 1 and a count of at least 0.");
        streams.push_back({reinterpret_cast<const void*>(f[0]), reinterpret_cast<void*>(f[1]), f[2], f[3],
                           f[4], basis_dtype(f[5]), vector_dtype(f[6])});
    }
    return streams;
}

}  // namespace hvp
