// Bindings of the tridiagonal quadrature on CUDA.
#include "hvp/cuda/tridiagonal.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "arguments.h"
#include "cuda_calls.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::at;

void cuda_tridiagonal_quadrature(std::int64_t num, std::int64_t m, const std::array<Address, 7>& arrays,
                                 int device, Address stream) {
    if (num < 1 || m < 1) throw py::value_error("Give at least one matrix, and one step of each.");
    hvp::cuda::check(hvp::cuda::tridiagonal_quadrature(
        num, m,
        {at<double>(arrays[0]), at<double>(arrays[1]), at<std::int64_t>(arrays[2]), at<double>(arrays[3]),
         at<double>(arrays[4]), at<std::int64_t>(arrays[5]), at<void>(arrays[6])},
        {device, at<void>(stream)}));
}

}  // namespace

void register_cuda_tridiagonal(py::module_& m) {
    m.def("cuda_tridiagonal_workspace_bytes", &hvp::cuda::tridiagonal_workspace_bytes);
    m.def("cuda_tridiagonal_quadrature", &cuda_tridiagonal_quadrature);
}
