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

using hvp::DeviceAddress;
using hvp::Dtype;
using hvp::cuda::RecordEntry;

// Vector, store row and window row address, size, state row, last step, store type, vector type.
constexpr py::ssize_t kRecordFields = 8;

// What a table of entries needs of the arrays beside it.
struct RecordPlan {
    std::int64_t num_streams, num_tasks;
    std::int64_t state_rows;  // at least so many has the state
};

RecordEntry entry_of(const std::int64_t* f) {
    const auto address = [f](int field) { return hvp::address_in<DeviceAddress>(f[field]); };
    const std::int64_t size = hvp::checked_size(f[3]);  // 0 for a stream without a next vector
    const Dtype of_store = hvp::basis_dtype(f[6]), of_vector = hvp::vector_dtype(f[7]);
    return {address(0).required("a vector", of_vector, size),
            address(1).optional("a store row", of_store, size),
            address(2).optional("a window row", of_vector, size),
            size,
            hvp::checked_size(f[4]),
            f[5],
            0,
            of_store,
            of_vector};
}

py::tuple cuda_plan_record(const hvp::Table& table) {
    hvp::check_shape(table, kRecordFields);
    std::vector<RecordEntry> entries;
    RecordPlan plan = {table.shape(0), 0, 0};
    for (py::ssize_t s = 0; s < table.shape(0); ++s) {
        entries.push_back(entry_of(table.data(s, 0)));
        if (entries.back().state >= plan.state_rows) plan.state_rows = entries.back().state + 1;
    }
    plan.num_tasks = hvp::cuda::plan_record(entries.data(), plan.num_streams);
    return py::make_tuple(plan, hvp::cuda::words_of(entries));
}

// state: addresses of alphas, betas, norms, lost, steps and live.
void cuda_record_step(const RecordPlan& plan, DeviceAddress entries, DeviceAddress alpha,
                      std::int64_t alpha_stride, DeviceAddress beta, DeviceAddress lost,
                      std::int64_t position, double tolerance, const std::array<DeviceAddress, 6>& state,
                      std::int64_t state_stride, int device, std::uintptr_t stream) {
    if (position < 0 || position >= state_stride)
        hvp::refuse("The position must be one of the state's columns.");
    const std::int64_t num = plan.num_streams, rows = plan.state_rows;
    const std::int64_t all = hvp::elements({rows, state_stride});
    hvp::cuda::check(hvp::cuda::record_step(
        {entries.required<const RecordEntry>("entries", num), num, plan.num_tasks,
         alpha.required<const double>("alpha", hvp::reach({{num, alpha_stride}})), alpha_stride,
         beta.required<const double>("beta", num), lost.required<const double>("lost", num), position,
         tolerance},
        {state[0].required<double>("alphas", all), state[1].required<double>("betas", all), state_stride,
         state[2].required<double>("norms", rows), state[3].required<double>("lost of the state", rows),
         state[4].required<std::int64_t>("steps", rows), state[5].required<bool>("live", rows)},
        hvp::cuda::queue(device, stream)));
}

}  // namespace

void register_cuda_lanczos_step(py::module_& m) {
    // Local: tests load these bindings a second time, over emulated kernels.
    py::class_<RecordPlan>(m, "RecordPlan", py::module_local())
        .def_readonly("num_tasks", &RecordPlan::num_tasks);
    m.def("cuda_plan_record", &cuda_plan_record, py::arg("table").noconvert());
    m.def("cuda_record_step", &cuda_record_step);
}
