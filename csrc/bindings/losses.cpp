// Bindings of the softmax, embedding and head-curvature kernels.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "addresses.h"
#include "dispatch.h"
#include "hvp/embedding.h"
#include "hvp/head_curvature.h"
#include "hvp/softmax.h"

namespace py = pybind11;
using hvp::Address;
using hvp::at;
using hvp::checked_dtype;

namespace {

void check_sizes(std::initializer_list<std::int64_t> sizes) {
    for (const std::int64_t size : sizes)
        if (size < 0) throw std::invalid_argument("sizes must not be negative");
}

void check_panel(std::int64_t d, std::int64_t first, std::int64_t last) {
    if (first < 0 || first > last || last > d * (d + 1) / 2)
        throw std::invalid_argument("the pairs lie outside of the triangle");
}

void softmax_forward(int dtype, Address input, std::int64_t rows, std::int64_t columns, Address output) {
    check_sizes({rows, columns});
    py::gil_scoped_release release;
    HVP_SELECT(softmax_forward)(checked_dtype(dtype), at<const void>(input), rows, columns, at<void>(output));
}

void softmax_backward(int dtype, Address p, Address g, std::int64_t rows, std::int64_t base_rows,
                      std::int64_t columns, Address grad_input) {
    check_sizes({rows, base_rows, columns});
    py::gil_scoped_release release;
    HVP_SELECT(softmax_backward)
    (checked_dtype(dtype), at<const void>(p), at<const void>(g), rows, base_rows, columns,
     at<void>(grad_input));
}

void softmax_double_backward(int dtype, Address p, Address g, Address u, std::int64_t rows,
                             std::int64_t base_rows, std::int64_t columns, Address wrt_input, Address wrt_g) {
    check_sizes({rows, base_rows, columns});
    py::gil_scoped_release release;
    HVP_SELECT(softmax_double_backward)
    (checked_dtype(dtype), at<const void>(p), at<const void>(g), at<const void>(u), rows, base_rows, columns,
     at<void>(wrt_input), at<void>(wrt_g));
}

void softmax_tangent(int dtype, Address logits, std::int64_t row_stride, Address norm, Address factor,
                     Address center, std::int64_t rows, std::int64_t columns, Address tangent,
                     Address totals) {
    check_sizes({row_stride, rows, columns});
    py::gil_scoped_release release;
    HVP_SELECT(softmax_tangent)
    (checked_dtype(dtype), at<const void>(logits), row_stride, at<const void>(norm), at<const void>(factor),
     at<const void>(center), rows, columns, at<void>(tangent), at<double>(totals));
}

void embedding_backward(int dtype, Address order, Address sorted_rows, std::int64_t tokens, Address grad,
                        std::int64_t table_rows, std::int64_t columns, Address table) {
    check_sizes({tokens, table_rows, columns});
    py::gil_scoped_release release;
    HVP_SELECT(embedding_backward)
    (checked_dtype(dtype), at<const std::int64_t>(order), at<const std::int64_t>(sorted_rows), tokens,
     at<const void>(grad), table_rows, columns, at<void>(table));
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

void register_losses(py::module_& m) {
    m.def("softmax_forward", &softmax_forward);
    m.def("softmax_backward", &softmax_backward);
    m.def("softmax_double_backward", &softmax_double_backward);
    m.def("softmax_tangent", &softmax_tangent);
    m.def("embedding_backward", &embedding_backward);
    m.def("pair_products", &pair_products);
    m.def("pack_covariance", &pack_covariance);
    m.def("packed_symmetric_matvec", &packed_symmetric_matvec);
}
