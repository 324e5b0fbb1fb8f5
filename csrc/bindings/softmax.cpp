// Bindings of the softmax kernels.
#include "hvp/softmax.h"

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::checked_dtype;
using hvp::Dtype;
using hvp::elements;

void softmax_forward(int dtype, Address input, std::int64_t rows, std::int64_t columns, Address output) {
    const Dtype type = checked_dtype(dtype);
    const std::int64_t all = elements({rows, columns});
    const void* from = input.required("input", type, all);
    void* to = output.required("output", type, all);
    if (all == 0) return;
    py::gil_scoped_release release;
    HVP_SELECT(softmax_forward)(type, from, rows, columns, to);
}

// Elements of the probabilities that `rows` rows share.
std::int64_t base_elements(std::int64_t rows, std::int64_t base_rows, std::int64_t columns) {
    if (rows > 0 && base_rows == 0) hvp::refuse("Rows need base rows to read.");
    return elements({base_rows, columns});
}

void softmax_backward(int dtype, Address p, Address g, std::int64_t rows, std::int64_t base_rows,
                      std::int64_t columns, Address grad_input) {
    const Dtype type = checked_dtype(dtype);
    const std::int64_t all = elements({rows, columns});
    const void* probabilities = p.required("p", type, base_elements(rows, base_rows, columns));
    const void* upstream = g.required("g", type, all);
    void* to = grad_input.required("grad_input", type, all);
    if (all == 0) return;
    py::gil_scoped_release release;
    HVP_SELECT(softmax_backward)(type, probabilities, upstream, rows, base_rows, columns, to);
}

void softmax_double_backward(int dtype, Address p, Address g, Address u, std::int64_t rows,
                             std::int64_t base_rows, std::int64_t columns, Address wrt_input, Address wrt_g) {
    const Dtype type = checked_dtype(dtype);
    const std::int64_t all = elements({rows, columns});
    const void* probabilities = p.required("p", type, base_elements(rows, base_rows, columns));
    const void *upstream = g.required("g", type, all), *cotangent = u.required("u", type, all);
    void* to_input = wrt_input.optional("wrt_input", type, all);
    void* to_g = wrt_g.optional("wrt_g", type, all);
    if (all == 0) return;
    py::gil_scoped_release release;
    HVP_SELECT(softmax_double_backward)
    (type, probabilities, upstream, cotangent, rows, base_rows, columns, to_input, to_g);
}

void softmax_tangent(int dtype, Address logits, std::int64_t row_stride, Address statistics, Address factor,
                     Address center, std::int64_t rows, std::int64_t columns, Address tangent,
                     Address totals) {
    const Dtype type = checked_dtype(dtype), wide = hvp::accumulator_of(type);
    const std::int64_t all = elements({rows, columns});
    if (rows > 1 && row_stride < columns) hvp::refuse("The rows of the logits overlap.");
    const void* from = logits.required("logits", type, hvp::reach({{rows, row_stride}, {columns, 1}}));
    const void* kept = statistics.required("statistics", wide, elements({rows, 2}));
    const void *factors = factor.required("factor", wide, rows),
               *centers = center.required("center", wide, rows);
    void* to = tangent.required("tangent", type, all);
    auto* sums = totals.required<double>("totals", rows);
    if (all == 0) return;
    py::gil_scoped_release release;
    HVP_SELECT(softmax_tangent)
    (type, from, row_stride, kept, factors, centers, rows, columns, to, sums);
}

}  // namespace

void register_softmax(py::module_& m) {
    m.def("softmax_forward", &softmax_forward);
    m.def("softmax_backward", &softmax_backward);
    m.def("softmax_double_backward", &softmax_double_backward);
    m.def("softmax_tangent", &softmax_tangent);
}
