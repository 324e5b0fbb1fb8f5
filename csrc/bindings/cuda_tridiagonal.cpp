// Bindings of the tridiagonal quadrature on CUDA.
#include "hvp/cuda/tridiagonal.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "arguments.h"
#include "cuda_calls.h"

namespace py = pybind11;

namespace {

using hvp::DeviceAddress;

// Bytes of the workspace; a block of threads of which most may be idle has room for all of them.
std::int64_t workspace_bytes(std::int64_t num, std::int64_t m) {
    if (num < 1 || m < 1) hvp::refuse("Give at least one matrix, and one step of each.");
    constexpr std::int64_t kMostOfThread = 3 * 32 * sizeof(double);
    (void)hvp::elements({num, m, kMostOfThread});
    return hvp::cuda::tridiagonal_workspace_bytes(num, m);
}

// arrays: alphas, betas, steps, nodes, weights, the number of a matrix that failed, workspace.
void cuda_tridiagonal_quadrature(std::int64_t num, std::int64_t m, const std::array<DeviceAddress, 7>& arrays,
                                 int device, std::uintptr_t stream) {
    const std::int64_t bytes = workspace_bytes(num, m), all = num * m;
    hvp::cuda::check(hvp::cuda::tridiagonal_quadrature(
        num, m,
        {arrays[0].required<const double>("alphas", all),
         arrays[1].required<const double>("betas", num * (m - 1)),
         arrays[2].required<const std::int64_t>("steps", num), arrays[3].required<double>("nodes", all),
         arrays[4].required<double>("weights", all), arrays[5].required<std::int64_t>("failed", 1),
         arrays[6].required<double>("workspace", bytes / static_cast<std::int64_t>(sizeof(double)))},
        hvp::cuda::queue(device, stream)));
}

}  // namespace

void register_cuda_tridiagonal(py::module_& m) {
    m.def("cuda_tridiagonal_workspace_bytes", &workspace_bytes);
    m.def("cuda_tridiagonal_quadrature", &cuda_tridiagonal_quadrature);
}
