// Bindings of the activation kernels. An input is (address, batch stride); address 0 means absent.
#include "hvp/activations.h"

#include <pybind11/pybind11.h>

#include <stdexcept>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using Release = py::call_guard<py::gil_scoped_release>;

hvp::Operand input(Address address, std::int64_t batch_stride) {
    return {hvp::at<void>(address), batch_stride};
}

hvp::ElementwiseShape shape(int type, std::int64_t batch, std::int64_t size) {
    hvp::check_sizes({batch, size});
    return {hvp::checked_dtype(type), batch, size};
}

hvp::Activation activation(int kind) {
    if (kind < 0 || kind > 2) throw std::invalid_argument("The kind of activation must be 0, 1 or 2.");
    return static_cast<hvp::Activation>(kind);
}

void activation_forward(int kind, int type, std::int64_t batch, std::int64_t size, Address x,
                        std::int64_t x_stride, Address y) {
    HVP_SELECT(activation_forward)(activation(kind), shape(type, batch, size), input(x, x_stride),
                                   hvp::at<void>(y));
}

void activation_backward(int kind, int type, std::int64_t batch, std::int64_t size, Address x,
                         std::int64_t x_stride, Address g, std::int64_t g_stride, Address dx) {
    HVP_SELECT(activation_backward)
    (activation(kind), shape(type, batch, size), input(x, x_stride), input(g, g_stride), hvp::at<void>(dx));
}

void activation_double_backward(int kind, int type, std::int64_t batch, std::int64_t size, Address x,
                                std::int64_t x_stride, Address g, std::int64_t g_stride, Address u,
                                std::int64_t u_stride, Address d_g, Address d_x) {
    HVP_SELECT(activation_double_backward)
    (activation(kind), shape(type, batch, size), input(x, x_stride), input(g, g_stride), input(u, u_stride),
     hvp::at<void>(d_g), hvp::at<void>(d_x));
}

void swiglu_forward(int type, std::int64_t batch, std::int64_t size, Address gate, std::int64_t gate_stride,
                    Address up, std::int64_t up_stride, Address y) {
    HVP_SELECT(swiglu_forward)
    (shape(type, batch, size), input(gate, gate_stride), input(up, up_stride), hvp::at<void>(y));
}

void swiglu_backward(int type, std::int64_t batch, std::int64_t size, Address gate, std::int64_t gate_stride,
                     Address up, std::int64_t up_stride, Address g, std::int64_t g_stride, Address d_gate,
                     Address d_up) {
    HVP_SELECT(swiglu_backward)
    (shape(type, batch, size), input(gate, gate_stride), input(up, up_stride), input(g, g_stride),
     hvp::at<void>(d_gate), hvp::at<void>(d_up));
}

void swiglu_double_backward(int type, std::int64_t batch, std::int64_t size, Address gate,
                            std::int64_t gate_stride, Address up, std::int64_t up_stride, Address g,
                            std::int64_t g_stride, Address u_gate, std::int64_t u_gate_stride, Address u_up,
                            std::int64_t u_up_stride, Address d_g, Address d_gate, Address d_up) {
    HVP_SELECT(swiglu_double_backward)
    (shape(type, batch, size), input(gate, gate_stride), input(up, up_stride), input(g, g_stride),
     input(u_gate, u_gate_stride), input(u_up, u_up_stride), hvp::at<void>(d_g), hvp::at<void>(d_gate),
     hvp::at<void>(d_up));
}

}  // namespace

void register_activations(py::module_& m) {
    m.def("activation_forward", &activation_forward, Release());
    m.def("activation_backward", &activation_backward, Release());
    m.def("activation_double_backward", &activation_double_backward, Release());
    m.def("swiglu_forward", &swiglu_forward, Release());
    m.def("swiglu_backward", &swiglu_backward, Release());
    m.def("swiglu_double_backward", &swiglu_double_backward, Release());
}
