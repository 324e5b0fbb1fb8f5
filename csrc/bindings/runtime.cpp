// Bindings of the run-time facts of the native module: instruction set and threads.
#include <omp.h>
#include <pybind11/pybind11.h>

#include "hvp/isa.h"

namespace py = pybind11;

void register_runtime(py::module_& m) {
    m.def("isa", &hvp::isa_name, "Instruction set in use: baseline, avx2 or avx512.");
    m.def("num_threads", &omp_get_max_threads, "Threads that a kernel called now would use.");
}
