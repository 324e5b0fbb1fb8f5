// Bindings of the run-time facts of the native module: instruction set and threads.
#include <omp.h>
#include <pybind11/pybind11.h>

#include "arguments.h"
#include "dispatch.h"
#include "hvp/fingerprint.h"
#include "hvp/read_floor.h"

namespace py = pybind11;

void register_runtime(py::module_& m) {
    m.def("isa", &hvp::isa_name, "Instruction set in use: baseline, avx2 or avx512.");
    m.def(
        "read_sum",
        [](hvp::Address data, std::int64_t size) {
            return HVP_SELECT(read_sum)(data.required<const float>("data", hvp::checked_size(size)), size);
        },
        py::arg("data"), py::arg("size"), py::call_guard<py::gil_scoped_release>(),
        "Reads size floats once with all threads: the floor that benchmarks measure against.");
    m.def(
        "fingerprint",
        [](hvp::Address pointer, std::int64_t bytes) {
            const auto* data = pointer.required<const unsigned char>("the bytes", hvp::checked_size(bytes));
            return hvp::fingerprint(data, static_cast<std::uint64_t>(bytes));
        },
        py::arg("pointer"), py::arg("bytes"), py::call_guard<py::gil_scoped_release>(),
        "A 64-bit number of the bytes and their order, the same at every thread count; not cryptographic.");
    m.def("num_threads", &omp_get_max_threads, "Threads that a kernel called now would use.");
}
