// Bindings of the batched reorthogonalisation on CUDA.
#include "hvp/cuda/reorthogonalize.h"

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "cuda_calls.h"
#include "stream_table.h"

namespace py = pybind11;

namespace {

using hvp::DeviceAddress;
using hvp::cuda::ProjectionEntry;
using hvp::cuda::ProjectionPlan;

// The plan's sums, of which there are no more than three times as many, must not overflow.
void check_sums(const std::vector<hvp::ReorthogonalizeStream>& streams) {
    std::int64_t largest = 0, sum = 0;
    for (const hvp::ReorthogonalizeStream& stream : streams) {
        sum = hvp::checked_size(sum + hvp::checked_product(stream.count + 1, stream.size));
        if (stream.count > largest) largest = stream.count;
    }
    (void)hvp::elements({static_cast<std::int64_t>(streams.size()), largest});
}

py::tuple cuda_plan_reorthogonalize(const hvp::Table& table) {
    const std::vector<hvp::ReorthogonalizeStream> streams = hvp::streams_of<DeviceAddress>(table);
    check_sums(streams);
    std::vector<ProjectionEntry> entries(streams.size());
    const ProjectionPlan plan = hvp::cuda::plan_projection(streams.data(), table.shape(0), entries.data());
    return py::make_tuple(plan, hvp::cuda::words_of(entries));
}

void cuda_reorthogonalize(const ProjectionPlan& plan, std::int64_t near, double tolerance, double postponed,
                          DeviceAddress entries, DeviceAddress coefficients, std::int64_t coefficient_stride,
                          DeviceAddress norms, DeviceAddress lost, DeviceAddress workspace, int device,
                          std::uintptr_t stream) {
    if (coefficient_stride < plan.max_count)
        hvp::refuse("A stream has more rows than there are columns of coefficients.");
    const hvp::ReorthogonalizeRule rule = {near, tolerance, postponed};
    if (rule.postpones() && plan.has_mixed_types()) hvp::refuse(hvp::kMixedTypes);
    const std::int64_t all = hvp::elements({plan.num_streams, coefficient_stride});
    const std::int64_t room = plan.workspace_bytes / static_cast<std::int64_t>(sizeof(double));
    hvp::cuda::check(hvp::cuda::reorthogonalize(
        plan, rule,
        {entries.required<const ProjectionEntry>("entries", plan.num_streams),
         coefficients.required<double>("coefficients", all), coefficient_stride,
         norms.required<double>("norms", plan.num_streams), lost.required<double>("lost", plan.num_streams),
         workspace.required<double>("workspace", room)},
        hvp::cuda::queue(device, stream)));
}

}  // namespace

void register_cuda_reorthogonalize(py::module_& m) {
    m.attr("cuda_max_rows") = hvp::cuda::kMaxRows;
    // Local: tests load these bindings a second time, over emulated kernels.
    py::class_<ProjectionPlan>(m, "ProjectionPlan", py::module_local())
        .def_readonly("workspace_bytes", &ProjectionPlan::workspace_bytes);
    m.def("cuda_plan_reorthogonalize", &cuda_plan_reorthogonalize, py::arg("table").noconvert());
    m.def("cuda_reorthogonalize", &cuda_reorthogonalize, py::call_guard<py::gil_scoped_release>());
}
