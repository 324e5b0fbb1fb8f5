// Bindings of the recorded Lanczos step on CUDA.
#include "hvp/cuda/lanczos_step.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "arguments.h"
#include "cuda_calls.h"
#include "stream_table.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::at;
using hvp::cuda::RecordEntry;

// Vector, store row and window row address, size, state row, last step, store type, vector type.
constexpr py::ssize_t kRecordFields = 8;

py::tuple cuda_plan_record(const hvp::Table& table) {
    hvp::check_shape(table, kRecordFields);
    std::vector<RecordEntry> entries;
    for (py::ssize_t s = 0; s < table.shape(0); ++s) {
        const std::int64_t* f = table.data(s, 0);
        if (f[3] < 0 || f[4] < 0)  // a stream without a next vector has size 0
            throw py::value_error("Stream " + std::to_string(s) + " has a negative size or state row.");
        entries.push_back({reinterpret_cast<const void*>(f[0]), reinterpret_cast<void*>(f[1]),
                           reinterpret_cast<void*>(f[2]), f[3], f[4], f[5], 0, hvp::basis_dtype(f[6]),
                           hvp::vector_dtype(f[7])});
    }
    const std::int64_t tasks = hvp::cuda::plan_record(entries.data(), table.shape(0));
    return py::make_tuple(tasks, hvp::cuda::words_of(entries));
}

// state: addresses of alphas, betas, norms, lost, steps and live.
void cuda_record_step(Address entries, std::int64_t num_streams, std::int64_t num_tasks, Address alpha,
                      std::int64_t alpha_stride, Address beta, Address lost, std::int64_t position,
                      double tolerance, const std::array<Address, 6>& state, std::int64_t state_stride,
                      int device, Address stream) {
    if (position < 0 || position >= state_stride)
        throw py::value_error("The position must be one of the state's columns.");
    hvp::cuda::check(hvp::cuda::record_step(
        {at<RecordEntry>(entries), num_streams, num_tasks, at<double>(alpha), alpha_stride, at<double>(beta),
         at<double>(lost), position, tolerance},
        {at<double>(state[0]), at<double>(state[1]), state_stride, at<double>(state[2]), at<double>(state[3]),
         at<std::int64_t>(state[4]), at<bool>(state[5])},
        {device, at<void>(stream)}));
}

}  // namespace

void register_cuda_lanczos_step(py::module_& m) {
    m.def("cuda_plan_record", &cuda_plan_record, py::arg("table").noconvert());
    m.def("cuda_record_step", &cuda_record_step);
}
