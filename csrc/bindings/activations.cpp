// Bindings of the activation kernels. An input is (address, batch stride); address 0 means absent.
#include "hvp/activations.h"

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "dispatch.h"
#include "operands.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::Groups;
using Release = py::call_guard<py::gil_scoped_release>;

Groups groups(int type, std::int64_t batch, std::int64_t size) {
    return {hvp::checked_dtype(type), batch, size};
}

hvp::ElementwiseShape shape(const Groups& all) { return {all.type, all.batch, all.size}; }

hvp::Activation activation(int kind) {
    if (kind < 0 || kind > 2) hvp::refuse("The kind of activation must be 0, 1 or 2.");
    return static_cast<hvp::Activation>(kind);
}

void activation_forward(int kind, int type, std::int64_t batch, std::int64_t size, Address x,
                        std::int64_t x_stride, Address y) {
    const hvp::Activation function = activation(kind);
    const Groups all = groups(type, batch, size);
    const hvp::Operand from = all.input("x", x, x_stride);
    void* to = all.output("y", y);
    if (all.empty()) return;
    HVP_SELECT(activation_forward)(function, shape(all), from, to);
}

void activation_backward(int kind, int type, std::int64_t batch, std::int64_t size, Address x,
                         std::int64_t x_stride, Address g, std::int64_t g_stride, Address dx) {
    const hvp::Activation function = activation(kind);
    const Groups all = groups(type, batch, size);
    const hvp::Operand from = all.input("x", x, x_stride), upstream = all.input("g", g, g_stride);
    void* to = all.output("dx", dx);
    if (all.empty()) return;
    HVP_SELECT(activation_backward)(function, shape(all), from, upstream, to);
}

void activation_double_backward(int kind, int type, std::int64_t batch, std::int64_t size, Address x,
                                std::int64_t x_stride, Address g, std::int64_t g_stride, Address u,
                                std::int64_t u_stride, Address d_g, Address d_x) {
    const hvp::Activation function = activation(kind);
    const Groups all = groups(type, batch, size);
    const hvp::Operand from = all.input("x", x, x_stride), upstream = all.input("g", g, g_stride),
                       cotangent = all.input("u", u, u_stride);
    void *to_g = all.optional_output("d_g", d_g), *to_x = all.optional_output("d_x", d_x);
    if (all.empty()) return;
    HVP_SELECT(activation_double_backward)(function, shape(all), from, upstream, cotangent, to_g, to_x);
}

void swiglu_forward(int type, std::int64_t batch, std::int64_t size, Address gate, std::int64_t gate_stride,
                    Address up, std::int64_t up_stride, Address y) {
    const Groups all = groups(type, batch, size);
    const hvp::Operand gates = all.input("gate", gate, gate_stride), ups = all.input("up", up, up_stride);
    void* to = all.output("y", y);
    if (all.empty()) return;
    HVP_SELECT(swiglu_forward)(shape(all), gates, ups, to);
}

void swiglu_backward(int type, std::int64_t batch, std::int64_t size, Address gate, std::int64_t gate_stride,
                     Address up, std::int64_t up_stride, Address g, std::int64_t g_stride, Address d_gate,
                     Address d_up) {
    const Groups all = groups(type, batch, size);
    const hvp::Operand gates = all.input("gate", gate, gate_stride), ups = all.input("up", up, up_stride),
                       upstream = all.input("g", g, g_stride);
    void *to_gate = all.optional_output("d_gate", d_gate), *to_up = all.optional_output("d_up", d_up);
    if (all.empty()) return;
    HVP_SELECT(swiglu_backward)(shape(all), gates, ups, upstream, to_gate, to_up);
}

void swiglu_double_backward(int type, std::int64_t batch, std::int64_t size, Address gate,
                            std::int64_t gate_stride, Address up, std::int64_t up_stride, Address g,
                            std::int64_t g_stride, Address u_gate, std::int64_t u_gate_stride, Address u_up,
                            std::int64_t u_up_stride, Address d_g, Address d_gate, Address d_up) {
    const Groups all = groups(type, batch, size);
    const hvp::Operand gates = all.input("gate", gate, gate_stride), ups = all.input("up", up, up_stride),
                       upstream = all.input("g", g, g_stride),
                       of_gate = all.optional_input("u_gate", u_gate, u_gate_stride),
                       of_up = all.optional_input("u_up", u_up, u_up_stride);
    void *to_g = all.optional_output("d_g", d_g), *to_gate = all.optional_output("d_gate", d_gate),
         *to_up = all.optional_output("d_up", d_up);
    if (all.empty()) return;
    HVP_SELECT(swiglu_double_backward)
    (shape(all), gates, ups, upstream, of_gate, of_up, to_g, to_gate, to_up);
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
