// Binding of the glibc allocator's settings.
#include <malloc.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cstddef>

namespace py = pybind11;

namespace {

constexpr std::ptrdiff_t KEPT = std::ptrdiff_t{64} << 20;  // as much as glibc keeps by itself at most

char* heap_end = nullptr;  // at the latest trim, or the lowest when thresholds were set since

char* end_of_heap() { return static_cast<char*>(sbrk(0)); }

// To give pages back and fault them in again costs a small product more than its arithmetic, and to ask glibc
// how much is free a good part of it: a heap that has not grown has nothing to give back.
bool trim_heap() {
    if (end_of_heap() - heap_end <= KEPT) return false;
    bool gave = malloc_trim(0) == 1;
    heap_end = end_of_heap();
    return gave;
}

// mallopt takes an int: the largest threshold is 2 GiB - 1. Older versions of glibc refuse more than 32 MiB.
bool set_malloc_thresholds(int mmap_threshold, int trim_threshold) {
    if (mmap_threshold < 0 || trim_threshold < 0)
        throw py::value_error("The thresholds must not be negative.");
    if (heap_end == nullptr || end_of_heap() < heap_end) heap_end = end_of_heap();
    return mallopt(M_MMAP_THRESHOLD, mmap_threshold) == 1 && mallopt(M_TRIM_THRESHOLD, trim_threshold) == 1;
}

}  // namespace

void register_allocator(py::module_& m) {
    m.def("set_malloc_thresholds", &set_malloc_thresholds, py::arg("mmap_threshold"),
          py::arg("trim_threshold"),
          "Sets M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in bytes; blocks below the first one come from the "
          "heap.");
    m.def("trim_heap", &trim_heap, py::call_guard<py::gil_scoped_release>(),
          "Gives free heap memory back to the kernel where the heap grew by more than 64 MiB; says whether "
          "it did.");
}
