// Bindings of the packed symmetric matrices.
#include "hvp/packed_symmetric.h"

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::checked_dtype;
using hvp::Dtype;
using hvp::elements;

// The size of a packed d x d triangle.
std::int64_t triangle(std::int64_t d) { return hvp::checked_product(hvp::checked_size(d), d + 1) / 2; }

// The number of pairs first..last.
std::int64_t panel(std::int64_t d, std::int64_t first, std::int64_t last) {
    if (first < 0 || first > last || last > triangle(d))
        hvp::refuse("The pairs first..last must lie within the triangle.");
    return last - first;
}

void pair_products(int dtype, Address weight, Address center, std::int64_t rows, std::int64_t d,
                   std::int64_t first, std::int64_t last, Address products) {
    const Dtype type = checked_dtype(dtype, Dtype::float64);
    const std::int64_t all = elements({rows, panel(d, first, last)});
    const void* from = weight.required("weight", type, elements({rows, d}));
    const void* middle = center.required("center", type, d);
    void* to = products.required("products", type, all);
    if (all == 0) return;
    py::gil_scoped_release release;
    HVP_SELECT(pair_products)(type, from, middle, rows, d, first, last, to);
}

void pack_covariance(int moment_dtype, int packed_dtype, Address moments, Address mean, std::int64_t tokens,
                     std::int64_t d, std::int64_t first, std::int64_t last, Address packed) {
    const Dtype type = checked_dtype(moment_dtype, Dtype::float64), packed_type = checked_dtype(packed_dtype);
    if (packed_type != type && (type != Dtype::float32 || packed_type != Dtype::bfloat16))
        hvp::refuse("Triangles must have the moments' dtype, or bfloat16 beside float32.");
    const std::int64_t all = elements({tokens, panel(d, first, last)});
    const void* from = moments.required("moments", type, all);
    const void* means = mean.required("mean", type, elements({tokens, d}));
    void* to = packed.required("packed", packed_type, elements({tokens, triangle(d)}));
    if (all == 0) return;
    py::gil_scoped_release release;
    HVP_SELECT(pack_covariance)(type, packed_type, from, means, tokens, d, first, last, to);
}

void packed_symmetric_matvec(int dtype, Address packed, Address vectors, std::int64_t count,
                             std::int64_t tokens, std::int64_t d, Address out) {
    const Dtype type = checked_dtype(dtype), wide = hvp::accumulator_of(type);
    const std::int64_t all = elements({count, tokens, d});
    const void* matrices = packed.required("packed", type, elements({tokens, triangle(d)}));
    const void* from = vectors.required("vectors", wide, all);
    void* to = out.required("out", wide, all);
    if (all == 0) return;
    py::gil_scoped_release release;
    HVP_SELECT(packed_symmetric_matvec)(type, matrices, from, count, tokens, d, to);
}

}  // namespace

void register_packed_symmetric(py::module_& m) {
    m.def("pair_products", &pair_products);
    m.def("pack_covariance", &pack_covariance);
    m.def("packed_symmetric_matvec", &packed_symmetric_matvec);
}
