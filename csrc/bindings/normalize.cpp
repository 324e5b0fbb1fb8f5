// Bindings of the normalisation kernels. An input is (address, batch stride); address 0 means absent.
#include "hvp/normalize.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "arguments.h"
#include "dispatch.h"
#include "operands.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::Dtype;
using hvp::Groups;
using hvp::Operand;
using Input = std::pair<Address, std::int64_t>;
using Release = py::call_guard<py::gil_scoped_release>;

Operand input(const Groups& groups, const char* name, const Input& given) {
    return groups.input(name, given.first, given.second);
}

std::int64_t chunks(std::int64_t rows) { return hvp::normalize_chunks(hvp::checked_size(rows)); }

// The groups of every operand of a call.
struct Tensors {
    hvp::NormalizeShape shape;
    Groups rows, parameters, statistics;

    Tensors(bool centered, int type, int parameter_type, std::int64_t batch, std::int64_t rows_of_group,
            std::int64_t size)
        : shape{hvp::checked_dtype(type),
                hvp::checked_dtype(parameter_type),
                centered,
                batch,
                rows_of_group,
                size},
          rows(shape.type, batch, hvp::elements({rows_of_group, size})),
          parameters(shape.parameter_type, batch, size),
          statistics(hvp::accumulator_of(shape.type), batch, hvp::elements({rows_of_group, 2})) {
        (void)hvp::elements({batch, rows_of_group, size});
        if (shape.parameter_type != shape.type &&
            !(shape.type == Dtype::bfloat16 && shape.parameter_type == Dtype::float32))
            hvp::refuse("Parameters must have the input's dtype, or float32 beside bfloat16.");
        if (size < 1) hvp::refuse("A row must have at least one element.");
    }

    // Room for partial rows of `planes` sums.
    void* workspace(Address address, std::int64_t planes) const {
        const std::int64_t of_group = hvp::elements({planes, chunks(shape.rows), shape.size});
        return Groups(statistics.type, shape.batch, of_group).optional_output("workspace", address);
    }

    hvp::NormalizeInputs inputs(const Input& x, const Input& w, const Input& stats, const Input& g) const {
        return {input(rows, "x", x), input(parameters, "w", w), input(statistics, "statistics", stats),
                input(rows, "g", g)};
    }
};

void normalize_forward(bool centered, int type, int parameter_type, std::int64_t batch, std::int64_t rows,
                       std::int64_t size, double eps, const Input& x, const Input& w, const Input& b,
                       Address y, Address statistics) {
    const Tensors all(centered, type, parameter_type, batch, rows, size);
    const Operand from = input(all.rows, "x", x), scale = input(all.parameters, "w", w),
                  shift = input(all.parameters, "b", b);
    void *to = all.rows.output("y", y), *kept = all.statistics.output("statistics", statistics);
    if (all.rows.empty()) return;
    HVP_SELECT(normalize_forward)(all.shape, eps, from, scale, shift, to, kept);
}

void normalize_backward(bool centered, int type, int parameter_type, std::int64_t batch, std::int64_t rows,
                        std::int64_t size, const Input& x, const Input& w, const Input& statistics,
                        const Input& g, Address dx, Address dw, Address db, Address workspace) {
    const Tensors all(centered, type, parameter_type, batch, rows, size);
    const hvp::NormalizeInputs in = all.inputs(x, w, statistics, g);
    void *to_x = all.rows.optional_output("dx", dx), *to_w = all.parameters.optional_output("dw", dw),
         *to_b = all.parameters.optional_output("db", db), *partial = all.workspace(workspace, 2);
    if (partial == nullptr && (to_w != nullptr || to_b != nullptr))
        hvp::refuse("Parameter gradients need a workspace.");
    if (batch == 0) return;
    HVP_SELECT(normalize_backward)(all.shape, in, to_x, to_w, to_b, partial);
}

void normalize_double_backward(bool centered, int type, int parameter_type, std::int64_t batch,
                               std::int64_t rows, std::int64_t size, const Input& x, const Input& w,
                               const Input& statistics, const Input& g, const Input& u, const Input& u_w,
                               const Input& u_b, Address d_g, Address d_x, Address d_w, Address workspace) {
    const Tensors all(centered, type, parameter_type, batch, rows, size);
    const hvp::NormalizeInputs in = all.inputs(x, w, statistics, g);
    const Operand of_x = input(all.rows, "u", u),
                  of_w = all.parameters.optional_input("u_w", u_w.first, u_w.second),
                  of_b = all.parameters.optional_input("u_b", u_b.first, u_b.second);
    if ((of_w.data == nullptr) != (of_b.data == nullptr))
        hvp::refuse("Give both parameter cotangents, or none.");
    void *to_g = all.rows.output("d_g", d_g), *to_x = all.rows.optional_output("d_x", d_x),
         *to_w = all.parameters.optional_output("d_w", d_w), *partial = all.workspace(workspace, 1);
    if (partial == nullptr && to_w != nullptr) hvp::refuse("The weight gradient needs a workspace.");
    if (batch == 0) return;
    HVP_SELECT(normalize_double_backward)(all.shape, in, of_x, of_w, of_b, to_g, to_x, to_w, partial);
}

}  // namespace

void register_normalize(py::module_& m) {
    m.def("normalize_chunks", &chunks);
    m.def("normalize_forward", &normalize_forward, Release());
    m.def("normalize_backward", &normalize_backward, Release());
    m.def("normalize_double_backward", &normalize_double_backward, Release());
}
