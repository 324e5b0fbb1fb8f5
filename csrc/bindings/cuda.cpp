// Bindings of the CUDA kernels: argument checks, host-side plans, errors as exceptions. Addresses are device
// addresses; tables are int64 arrays on the host that the caller copies to the device.
#include "hvp/cuda.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "addresses.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::at;
using hvp::cuda::ProjectionEntry;
using hvp::cuda::ProjectionPlan;
using hvp::cuda::Queue;
using hvp::cuda::RecordEntry;
using Table = py::array_t<std::int64_t, py::array::c_style>;

static_assert(sizeof(ProjectionEntry) % sizeof(std::int64_t) == 0, "entries are copied as 64-bit words");
static_assert(sizeof(RecordEntry) % sizeof(std::int64_t) == 0, "entries are copied as 64-bit words");

// Columns of the table of hvp_engine.kernels.reorthogonalize.
constexpr py::ssize_t kStreamFields = 7;
// Vector, store row and window row address, size, state row, last step, store type, vector type.
constexpr py::ssize_t kRecordFields = 8;

void check(const char* error) {
    if (error != nullptr) throw std::runtime_error(error);
}

template <typename Entry>
Table words_of(const std::vector<Entry>& entries) {
    Table words({static_cast<py::ssize_t>(entries.size()),
                 static_cast<py::ssize_t>(sizeof(Entry) / sizeof(std::int64_t))});
    std::memcpy(words.mutable_data(), entries.data(), entries.size() * sizeof(Entry));
    return words;
}

void check_shape(const Table& table, py::ssize_t fields) {
    if (table.ndim() != 2 || table.shape(0) < 1 || table.shape(1) != fields)
        throw py::value_error("the table must be (streams, " + std::to_string(fields) + ")");
}

void check_types(std::int64_t basis, std::int64_t vector) {
    if (basis < 0 || basis > 2 || vector < 0 || vector > 1) throw py::value_error("unknown type number");
}

py::tuple plan_reorthogonalize(const Table& table) {
    check_shape(table, kStreamFields);
    std::vector<hvp::ReorthogonalizeStream> streams;
    for (py::ssize_t s = 0; s < table.shape(0); ++s) {
        const std::int64_t* f = table.data(s, 0);
        check_types(f[5], f[6]);
        if (f[3] < 1 || f[4] < 0)
            throw py::value_error("stream " + std::to_string(s) + " has an invalid size");
        streams.push_back({reinterpret_cast<const void*>(f[0]), reinterpret_cast<void*>(f[1]), f[2], f[3],
                           f[4], static_cast<hvp::BasisType>(f[5]), static_cast<hvp::VectorType>(f[6])});
    }
    std::vector<ProjectionEntry> entries(streams.size());
    const ProjectionPlan plan = hvp::cuda::plan_projection(streams.data(), table.shape(0), entries.data());
    return py::make_tuple(plan, words_of(entries));
}

void reorthogonalize(const ProjectionPlan& plan, Address entries, Address counts, Address coefficients,
                     std::int64_t coefficient_stride, Address norms, Address lost, Address workspace,
                     int device, Address stream) {
    check(hvp::cuda::reorthogonalize(
        plan,
        {at<ProjectionEntry>(entries), at<std::int64_t>(counts), at<double>(coefficients), coefficient_stride,
         at<double>(norms), at<double>(lost), at<void>(workspace)},
        Queue{device, at<void>(stream)}));
}

py::tuple plan_record(const Table& table) {
    check_shape(table, kRecordFields);
    std::vector<RecordEntry> entries;
    for (py::ssize_t s = 0; s < table.shape(0); ++s) {
        const std::int64_t* f = table.data(s, 0);
        check_types(f[6], f[7]);
        if (f[3] < 0 || f[4] < 0)  // a stream without a next vector has size 0
            throw py::value_error("stream " + std::to_string(s) + " has an invalid size or row");
        entries.push_back({reinterpret_cast<const void*>(f[0]), reinterpret_cast<void*>(f[1]),
                           reinterpret_cast<void*>(f[2]), f[3], f[4], f[5], 0,
                           static_cast<hvp::BasisType>(f[6]), static_cast<hvp::VectorType>(f[7])});
    }
    const std::int64_t tasks = hvp::cuda::plan_record(entries.data(), table.shape(0));
    return py::make_tuple(tasks, words_of(entries));
}

// state: addresses of alphas, betas, norms, lost, steps and live.
void record_step(Address entries, std::int64_t num_streams, std::int64_t num_tasks, Address alpha,
                 std::int64_t alpha_stride, Address beta, Address lost, std::int64_t position,
                 double tolerance, const std::array<Address, 6>& state, std::int64_t state_stride, int device,
                 Address stream) {
    if (position < 0 || position >= state_stride)
        throw py::value_error("the position is past the state's columns");
    check(hvp::cuda::record_step(
        {at<RecordEntry>(entries), num_streams, num_tasks, at<double>(alpha), alpha_stride, at<double>(beta),
         at<double>(lost), position, tolerance},
        {at<double>(state[0]), at<double>(state[1]), state_stride, at<double>(state[2]), at<double>(state[3]),
         at<std::int64_t>(state[4]), at<bool>(state[5])},
        Queue{device, at<void>(stream)}));
}

void tridiagonal_quadrature(std::int64_t num, std::int64_t m, const std::array<Address, 7>& arrays,
                            int device, Address stream) {
    if (num < 1 || m < 1) throw py::value_error("there must be at least one matrix and one step");
    check(hvp::cuda::tridiagonal_quadrature(
        num, m,
        {at<double>(arrays[0]), at<double>(arrays[1]), at<std::int64_t>(arrays[2]), at<double>(arrays[3]),
         at<double>(arrays[4]), at<std::int64_t>(arrays[5]), at<void>(arrays[6])},
        Queue{device, at<void>(stream)}));
}

}  // namespace

void register_cuda(py::module_& m) {
    m.def(
        "cuda_why_not",
        [] {
            const char* reason = hvp::cuda::why_not();
            return reason == nullptr ? py::object(py::none()) : py::object(py::str(reason));
        },
        "Why the CUDA kernels cannot run here, or None.");
    m.attr("cuda_max_rows") = hvp::cuda::kMaxRows;
    // Local: tests load these bindings a second time, over emulated kernels.
    py::class_<ProjectionPlan>(m, "ProjectionPlan", py::module_local())
        .def_readonly("workspace_bytes", &ProjectionPlan::workspace_bytes)
        .def_readonly("max_count", &ProjectionPlan::max_count);
    m.def("cuda_plan_reorthogonalize", &plan_reorthogonalize, py::arg("table").noconvert());
    m.def("cuda_reorthogonalize", &reorthogonalize, py::call_guard<py::gil_scoped_release>());
    m.def("cuda_plan_record", &plan_record, py::arg("table").noconvert());
    m.def("cuda_record_step", &record_step);
    m.def("cuda_tridiagonal_workspace_bytes", &hvp::cuda::tridiagonal_workspace_bytes);
    m.def("cuda_tridiagonal_quadrature", &tridiagonal_quadrature);
}
