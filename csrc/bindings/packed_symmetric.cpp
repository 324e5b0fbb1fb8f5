// Bindings of the packed symmetric matrices.
#include "hvp/packed_symmetric.h"

#include <pybind11/pybind11.h>

#include <stdexcept>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::at;
using hvp::check_sizes;
using hvp::checked_dtype;

void check_panel(std::int64_t d, std::int64_t first, std::int64_t last) {
    if (first < 0 || first > last || last > d * (d + 1) / 2)
        throw std::invalid_argument("The pairs first..last must lie within the triangle.");
}

void pair_products(int dtype, Address weight, Address center, std::int64_t rows, std::int64_t d,
                   std::int64_t first, std::int64_t last, Address products) {
    check_sizes({rows, d});
    check_panel(d, first, last);
    py::gil_scoped_release release;
    HVP_SELECT(pair_products)
    (checked_dtype(dtype), at<const void>(weight), at<const void>(center), rows, d, first, last,
     at<void>(products));
}

void pack_covariance(int moment_dtype, int packed_dtype, Address moments, Address mean, std::int64_t tokens,
                     std::int64_t d, std::int64_t first, std::int64_t last, Address packed) {
    check_sizes({tokens, d});
    check_panel(d, first, last);
    py::gil_scoped_release release;
    HVP_SELECT(pack_covariance)
    (checked_dtype(moment_dtype), checked_dtype(packed_dtype), at<const void>(moments), at<const void>(mean),
     tokens, d, first, last, at<void>(packed));
}

void packed_symmetric_matvec(int dtype, Address packed, Address vectors, std::int64_t count,
                             std::int64_t tokens, std::int64_t d, Address out) {
    check_sizes({count, tokens, d});
    py::gil_scoped_release release;
    HVP_SELECT(packed_symmetric_matvec)
    (checked_dtype(dtype), at<const void>(packed), at<const void>(vectors), count, tokens, d, at<void>(out));
}

}  // namespace

void register_packed_symmetric(py::module_& m) {
    m.def("pair_products", &pair_products);
    m.def("pack_covariance", &pack_covariance);
    m.def("packed_symmetric_matvec", &packed_symmetric_matvec);
}
