// Bindings of the normalisation kernels. An input is (address, batch stride); address 0 means absent.
#include "hvp/normalize.h"

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <utility>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using Input = std::pair<Address, std::int64_t>;
using Release = py::call_guard<py::gil_scoped_release>;

hvp::Operand operand(const Input& input) { return {hvp::at<void>(input.first), input.second}; }

hvp::NormalizeShape shape(bool centered, int type, int parameter_type, std::int64_t batch, std::int64_t rows,
                          std::int64_t size) {
    const hvp::Dtype dtype = hvp::checked_dtype(type), of_parameters = hvp::checked_dtype(parameter_type);
    if (of_parameters != dtype && !(dtype == hvp::Dtype::bfloat16 && of_parameters == hvp::Dtype::float32)) {
        throw std::invalid_argument("Parameters must have the input's dtype, or float32 beside bfloat16.");
    }
    hvp::check_sizes({batch, rows});
    if (size < 1) throw std::invalid_argument("A row must have at least one element.");
    return {dtype, of_parameters, centered, batch, rows, size};
}

void normalize_forward(bool centered, int type, int parameter_type, std::int64_t batch, std::int64_t rows,
                       std::int64_t size, double eps, Input x, Input w, Input b, Address y,
                       Address statistics) {
    HVP_SELECT(normalize_forward)
    (shape(centered, type, parameter_type, batch, rows, size), eps, operand(x), operand(w), operand(b),
     hvp::at<void>(y), hvp::at<void>(statistics));
}

void normalize_backward(bool centered, int type, int parameter_type, std::int64_t batch, std::int64_t rows,
                        std::int64_t size, Input x, Input w, Input statistics, Input g, Address dx,
                        Address dw, Address db, Address workspace) {
    if ((dw != 0 || db != 0) && workspace == 0)
        throw std::invalid_argument("Parameter gradients need a workspace.");
    HVP_SELECT(normalize_backward)
    (shape(centered, type, parameter_type, batch, rows, size),
     hvp::NormalizeInputs{operand(x), operand(w), operand(statistics), operand(g)}, hvp::at<void>(dx),
     hvp::at<void>(dw), hvp::at<void>(db), hvp::at<void>(workspace));
}

void normalize_double_backward(bool centered, int type, int parameter_type, std::int64_t batch,
                               std::int64_t rows, std::int64_t size, Input x, Input w, Input statistics,
                               Input g, Input u, Input u_w, Input u_b, Address d_g, Address d_x, Address d_w,
                               Address workspace) {
    if (d_w != 0 && workspace == 0) throw std::invalid_argument("The weight gradient needs a workspace.");
    if ((u_w.first == 0) != (u_b.first == 0)) {
        throw std::invalid_argument("Give both parameter cotangents, or none.");
    }
    HVP_SELECT(normalize_double_backward)
    (shape(centered, type, parameter_type, batch, rows, size),
     hvp::NormalizeInputs{operand(x), operand(w), operand(statistics), operand(g)}, operand(u), operand(u_w),
     operand(u_b), hvp::at<void>(d_g), hvp::at<void>(d_x), hvp::at<void>(d_w), hvp::at<void>(workspace));
}

}  // namespace

void register_normalize(py::module_& m) {
    m.def("normalize_chunks", &hvp::normalize_chunks);
    m.def("normalize_forward", &normalize_forward, Release());
    m.def("normalize_backward", &normalize_backward, Release());
    m.def("normalize_double_backward", &normalize_double_backward, Release());
}
