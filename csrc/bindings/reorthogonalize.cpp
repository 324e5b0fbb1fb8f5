// Binding of the batched reorthogonalisation: checks the table of streams and releases the GIL.
#include "hvp/reorthogonalize.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <new>
#include <vector>

#include "dispatch.h"

namespace py = pybind11;

namespace {

// Columns of the table: basis address, vector address, row stride, size, count, basis type, vector type.
constexpr py::ssize_t kFields = 7;

using Table = py::array_t<std::int64_t, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;

std::vector<hvp::ReorthogonalizeStream> streams_of(const Table& table, std::int64_t max_count) {
    if (table.ndim() != 2 || table.shape(1) != kFields) throw py::value_error("table must be (streams, 7)");
    std::vector<hvp::ReorthogonalizeStream> streams;
    for (py::ssize_t s = 0; s < table.shape(0); ++s) {
        const std::int64_t* f = table.data(s, 0);
        if (f[3] < 1 || f[4] < 0 || f[4] > max_count || f[5] < 0 || f[5] > 2 || f[6] < 0 || f[6] > 1)
            throw py::value_error("stream " + std::to_string(s) + " has an invalid size, count or type");
        streams.push_back({reinterpret_cast<const void*>(f[0]), reinterpret_cast<void*>(f[1]), f[2], f[3],
                           f[4], static_cast<hvp::BasisType>(f[5]), static_cast<hvp::VectorType>(f[6])});
    }
    return streams;
}

void reorthogonalize(const Table& table, Doubles coefficients, Doubles norms, Doubles lost) {
    if (coefficients.ndim() != 2) throw py::value_error("coefficients must be (streams, max count)");
    const std::int64_t max_count = coefficients.shape(1);
    const std::vector<hvp::ReorthogonalizeStream> streams = streams_of(table, max_count);
    const auto num_streams = static_cast<py::ssize_t>(streams.size());
    if (coefficients.shape(0) != num_streams || norms.size() != num_streams || lost.size() != num_streams)
        throw py::value_error("outputs do not match the number of streams");
    double* c = coefficients.mutable_data();
    double* n = norms.mutable_data();
    double* l = lost.mutable_data();
    bool done = false;
    {
        py::gil_scoped_release release;
        done = HVP_SELECT(reorthogonalize)(streams.data(), num_streams, c, max_count, n, l);
    }
    if (!done) throw std::bad_alloc();
}

}  // namespace

void register_reorthogonalize(py::module_& m) {
    m.def("reorthogonalize", &reorthogonalize, py::arg("table").noconvert(),
          py::arg("coefficients").noconvert(), py::arg("norms").noconvert(), py::arg("lost").noconvert(),
          "Orthogonalises the vectors of all streams in place; see hvp_engine.kernels.reorthogonalize.");
}
