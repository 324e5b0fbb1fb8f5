// Binding of the batched tridiagonal quadrature: checks the shapes and releases the GIL.
#include "hvp/tridiagonal.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <new>
#include <vector>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using Integers = py::array_t<std::int64_t, py::array::c_style>;

void check_rows(const std::int64_t* steps, const std::int64_t* order, std::int64_t num, std::int64_t m) {
    std::vector<bool> seen(static_cast<std::size_t>(num));
    for (std::int64_t s = 0; s < num; ++s) {
        if (steps[s] < 1 || steps[s] > m || order[s] < 0 || order[s] >= num || seen[order[s]])
            throw py::value_error("Each of steps must be in 1..m, and order a permutation.");
        seen[order[s]] = true;
    }
}

// Returns -1, or the number of a matrix (one of its group) that did not converge.
std::int64_t tridiagonal_quadrature(const Doubles& alphas, const Doubles& betas, const Integers& steps,
                                    const Integers& order, Doubles nodes, Doubles weights) {
    hvp::check_aligned(alphas, betas, steps, order, nodes, weights);
    if (alphas.ndim() != 2 || alphas.shape(1) < 1)
        throw py::value_error("alphas must be (matrices, m) with m of at least 1.");
    const std::int64_t num = alphas.shape(0);
    const std::int64_t m = alphas.shape(1);
    if (betas.size() != num * (m - 1) || steps.size() != num || order.size() != num ||
        nodes.size() != num * m || weights.size() != num * m)
        throw py::value_error("The arrays do not match alphas (matrices, m).");
    check_rows(steps.data(), order.data(), num, m);
    double* x = nodes.mutable_data();
    double* w = weights.mutable_data();
    std::int64_t status = hvp::kTridiagonalDone;
    {
        py::gil_scoped_release release;
        status = HVP_SELECT(tridiagonal_quadrature)(alphas.data(), betas.data(), steps.data(), order.data(),
                                                    num, m, x, w);
    }
    if (status == hvp::kTridiagonalNoMemory) throw std::bad_alloc();
    return status;
}

}  // namespace

void register_tridiagonal(py::module_& m) {
    m.def("tridiagonal_quadrature", &tridiagonal_quadrature, py::arg("alphas").noconvert(),
          py::arg("betas").noconvert(), py::arg("steps").noconvert(), py::arg("order").noconvert(),
          py::arg("nodes").noconvert(), py::arg("weights").noconvert(),
          "Gauss quadrature of tridiagonal matrices; see hvp_engine.kernels.tridiagonal.");
}
