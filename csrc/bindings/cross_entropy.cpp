// Bindings of the cross-entropy kernels.
#include "hvp/cross_entropy.h"

#include <pybind11/pybind11.h>

#include <new>
#include <stdexcept>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

hvp::CrossEntropyRows make_rows(int dtype, hvp::Address logits, hvp::Address target,
                                hvp::Address class_weight, std::int64_t rows, std::int64_t base_rows,
                                std::int64_t classes, std::int64_t ignore_index, double smoothing) {
    hvp::check_sizes({rows, base_rows, classes});
    if (rows > 0 && base_rows == 0) throw std::invalid_argument("Rows need base rows to read.");
    return {hvp::checked_dtype(dtype),
            hvp::at<const void>(logits),
            hvp::at<const std::int64_t>(target),
            hvp::at<const void>(class_weight),
            rows,
            base_rows,
            classes,
            ignore_index,
            smoothing};
}

}  // namespace

void register_cross_entropy(py::module_& m) {
    py::class_<hvp::CrossEntropyRows>(m, "CrossEntropyRows")
        .def(py::init(&make_rows), py::arg("dtype"), py::arg("logits"), py::arg("target"),
             py::arg("class_weight"), py::arg("rows"), py::arg("base_rows"), py::arg("classes"),
             py::arg("ignore_index"), py::arg("smoothing"));
    m.def("cross_entropy_forward",
          [](const hvp::CrossEntropyRows& in, hvp::Address statistics, hvp::Address loss) {
              py::gil_scoped_release release;
              HVP_SELECT(cross_entropy_forward)(in, hvp::at<void>(statistics), hvp::at<void>(loss));
          });
    m.def("cross_entropy_backward", [](const hvp::CrossEntropyRows& in, hvp::Address statistics,
                                       hvp::Address scale, hvp::Address grad) {
        py::gil_scoped_release release;
        HVP_SELECT(cross_entropy_backward)
        (in, hvp::at<const void>(statistics), hvp::at<const void>(scale), hvp::at<void>(grad));
    });
    m.def("cross_entropy_hvp",
          [](const hvp::CrossEntropyRows& in, hvp::Address statistics, hvp::Address scale,
             hvp::Address tangent, hvp::Address product, hvp::Address slope) {
              py::gil_scoped_release release;
              const bool complete = HVP_SELECT(cross_entropy_hvp)(
                  in, hvp::at<const void>(statistics), hvp::at<const void>(scale),
                  hvp::at<const void>(tangent), hvp::at<void>(product), hvp::at<void>(slope));
              if (!complete) throw std::bad_alloc();
          });
}
