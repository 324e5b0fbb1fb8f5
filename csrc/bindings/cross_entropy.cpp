// Bindings of the cross-entropy kernels.
#include "hvp/cross_entropy.h"

#include <pybind11/pybind11.h>

#include <new>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::CrossEntropyRows;
using hvp::elements;

CrossEntropyRows make_rows(int dtype, Address logits, Address target, Address class_weight, std::int64_t rows,
                           std::int64_t base_rows, std::int64_t classes, std::int64_t ignore_index,
                           double smoothing) {
    const hvp::Dtype type = hvp::checked_dtype(dtype);
    (void)elements({rows, classes});
    if (rows > 0 && base_rows == 0) hvp::refuse("Rows need base rows to read.");
    const CrossEntropyRows made = {
        type,
        logits.required("logits", type, elements({base_rows, classes})),
        target.required<const std::int64_t>("target", hvp::checked_size(base_rows)),
        class_weight.optional("class_weight", hvp::accumulator_of(type), classes),
        rows,
        base_rows,
        classes,
        ignore_index,
        smoothing};
    for (std::int64_t r = 0; r < base_rows; ++r)  // kernels read and write at targets
        if (made.target[r] != ignore_index && (made.target[r] < 0 || made.target[r] >= classes))
            hvp::refuse("Each target must be the number of a class, or ignore_index.");
    return made;
}

const void* statistics_of(const CrossEntropyRows& in, Address statistics) {
    return statistics.required("statistics", hvp::accumulator_of(in.dtype), elements({in.base_rows, 2}));
}

void cross_entropy_forward(const CrossEntropyRows& in, Address statistics, Address loss) {
    void* kept = const_cast<void*>(statistics_of(in, statistics));
    void* to = loss.required("loss", hvp::accumulator_of(in.dtype), in.base_rows);
    if (in.base_rows == 0) return;
    py::gil_scoped_release release;
    HVP_SELECT(cross_entropy_forward)(in, kept, to);
}

void cross_entropy_backward(const CrossEntropyRows& in, Address statistics, Address scale, Address grad) {
    const void* kept = statistics_of(in, statistics);
    const void* factors = scale.required("scale", hvp::accumulator_of(in.dtype), in.rows);
    void* to = grad.required("grad", in.dtype, elements({in.rows, in.classes}));
    if (in.rows == 0) return;
    py::gil_scoped_release release;
    HVP_SELECT(cross_entropy_backward)(in, kept, factors, to);
}

void cross_entropy_hvp(const CrossEntropyRows& in, Address statistics, Address scale, Address tangent,
                       Address product, Address slope) {
    const hvp::Dtype wide = hvp::accumulator_of(in.dtype);
    const std::int64_t all = elements({in.rows, in.classes});
    const void* kept = statistics_of(in, statistics);
    const void* factors = scale.required("scale", wide, in.rows);
    const void* along = tangent.required("tangent", in.dtype, all);
    void* to = product.optional("product", in.dtype, all);
    void* slopes = slope.optional("slope", wide, in.rows);
    if (in.rows == 0) return;
    bool complete = false;
    {
        py::gil_scoped_release release;
        complete = HVP_SELECT(cross_entropy_hvp)(in, kept, factors, along, to, slopes);
    }
    if (!complete) throw std::bad_alloc();
}

}  // namespace

void register_cross_entropy(py::module_& m) {
    py::class_<CrossEntropyRows>(m, "CrossEntropyRows")
        .def(py::init(&make_rows), py::arg("dtype"), py::arg("logits"), py::arg("target"),
             py::arg("class_weight"), py::arg("rows"), py::arg("base_rows"), py::arg("classes"),
             py::arg("ignore_index"), py::arg("smoothing"));
    m.def("cross_entropy_forward", &cross_entropy_forward);
    m.def("cross_entropy_backward", &cross_entropy_backward);
    m.def("cross_entropy_hvp", &cross_entropy_hvp);
}
