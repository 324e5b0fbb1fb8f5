// Binding of the batched reorthogonalisation: checks the table of streams and releases the GIL.
#include "hvp/reorthogonalize.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <new>
#include <vector>

#include "dispatch.h"
#include "stream_table.h"

namespace py = pybind11;

namespace {

using Doubles = py::array_t<double, py::array::c_style>;

void reorthogonalize(const hvp::Table& table, std::int64_t near, double tolerance, double postponed,
                     Doubles coefficients, Doubles norms, Doubles lost) {
    hvp::check_aligned(coefficients, norms, lost);
    if (coefficients.ndim() != 2) throw py::value_error("The coefficients must be (streams, largest count).");
    const std::int64_t max_count = coefficients.shape(1);
    const std::vector<hvp::ReorthogonalizeStream> streams = hvp::streams_of<hvp::Address>(table);
    const hvp::ReorthogonalizeRule rule = hvp::checked_rule({near, tolerance, postponed}, streams);
    for (const hvp::ReorthogonalizeStream& stream : streams)
        if (stream.count > max_count)
            throw py::value_error("A stream has more rows than there are columns of coefficients.");
    const auto num_streams = static_cast<py::ssize_t>(streams.size());
    if (coefficients.shape(0) != num_streams || norms.size() != num_streams || lost.size() != num_streams)
        throw py::value_error("Each output must have one row per stream.");
    double* c = coefficients.mutable_data();
    double* n = norms.mutable_data();
    double* l = lost.mutable_data();
    bool done = false;
    {
        py::gil_scoped_release release;
        done = HVP_SELECT(reorthogonalize)(streams.data(), num_streams, rule, c, max_count, n, l);
    }
    if (!done) throw std::bad_alloc();
}

}  // namespace

void register_reorthogonalize(py::module_& m) {
    m.def("reorthogonalize", &reorthogonalize, py::arg("table").noconvert(), py::arg("near"),
          py::arg("tolerance"), py::arg("postponed"), py::arg("coefficients").noconvert(),
          py::arg("norms").noconvert(), py::arg("lost").noconvert(),
          "Orthogonalises the vectors of all streams in place; see hvp_engine.kernels.reorthogonalize.");
}
