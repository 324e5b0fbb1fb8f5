// Binding of the glibc allocator's settings.
#include <malloc.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

// mallopt takes an int: the largest threshold is 2 GiB - 1. Older versions of glibc refuse more than 32 MiB.
bool set_malloc_thresholds(int mmap_threshold, int trim_threshold) {
    if (mmap_threshold < 0 || trim_threshold < 0)
        throw py::value_error("The thresholds must not be negative.");
    return mallopt(M_MMAP_THRESHOLD, mmap_threshold) == 1 && mallopt(M_TRIM_THRESHOLD, trim_threshold) == 1;
}

}  // namespace

void register_allocator(py::module_& m) {
    m.def("set_malloc_thresholds", &set_malloc_thresholds, py::arg("mmap_threshold"),
          py::arg("trim_threshold"),
          "Sets M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in bytes; blocks below the first one come from the "
          "heap.");
    m.def(
        "trim_heap", [] { return malloc_trim(0) == 1; }, py::call_guard<py::gil_scoped_release>(),
        "Gives free heap memory back to the kernel; says whether there was any.");
}
