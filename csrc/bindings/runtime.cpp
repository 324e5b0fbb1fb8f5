// Bindings of the run-time facts of the native module: instruction set and threads.
#include <omp.h>
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "dispatch.h"
#include "hvp/fingerprint.h"
#include "hvp/read_floor.h"

namespace py = pybind11;

void register_runtime(py::module_& m) {
    m.def("isa", &hvp::isa_name, "Instruction set in use: baseline, avx2 or avx512.");
    m.def(
        "read_sum",
        [](std::uintptr_t data, std::int64_t size) {
            return HVP_SELECT(read_sum)(reinterpret_cast<const float*>(data), size);
        },
        py::arg("data"), py::arg("size"), py::call_guard<py::gil_scoped_release>(),
        "Reads size floats once with all threads: the floor that benchmarks measure against.");
    m.def(
        "fingerprint",
        [](std::uintptr_t pointer, std::uint64_t bytes) {
            if (pointer == 0 && bytes > 0) throw std::invalid_argument("The address is null.");
            return hvp::fingerprint(reinterpret_cast<const void*>(pointer), bytes);
        },
        py::arg("pointer"), py::arg("bytes"), py::call_guard<py::gil_scoped_release>(),
        "A 64-bit number of the bytes and their order, the same at every thread count; not cryptographic.");
    m.def("num_threads", &omp_get_max_threads, "Threads that a kernel called now would use.");
}
