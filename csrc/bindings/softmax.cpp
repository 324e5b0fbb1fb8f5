// Bindings of the softmax kernels.
#include "hvp/softmax.h"

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::at;
using hvp::check_sizes;
using hvp::checked_dtype;

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

void softmax_tangent(int dtype, Address logits, std::int64_t row_stride, Address statistics, Address factor,
                     Address center, std::int64_t rows, std::int64_t columns, Address tangent,
                     Address totals) {
    check_sizes({row_stride, rows, columns});
    py::gil_scoped_release release;
    HVP_SELECT(softmax_tangent)
    (checked_dtype(dtype), at<const void>(logits), row_stride, at<const void>(statistics),
     at<const void>(factor), at<const void>(center), rows, columns, at<void>(tangent), at<double>(totals));
}

}  // namespace

void register_softmax(py::module_& m) {
    m.def("softmax_forward", &softmax_forward);
    m.def("softmax_backward", &softmax_backward);
    m.def("softmax_double_backward", &softmax_double_backward);
    m.def("softmax_tangent", &softmax_tangent);
}
