// Binding of the device queries.
#include <pybind11/pybind11.h>

#include "hvp/cuda/device.h"

namespace py = pybind11;

void register_cuda_device(py::module_& m) {
    m.def(
        "cuda_why_not",
        [] {
            const char* reason = hvp::cuda::why_not();
            return reason == nullptr ? py::object(py::none()) : py::object(py::str(reason));
        },
        "Why the CUDA kernels cannot run here, or None.");
}
