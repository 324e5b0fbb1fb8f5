// Bindings of the batched reorthogonalisation on CUDA.
#include "hvp/cuda/reorthogonalize.h"

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "cuda_calls.h"
#include "stream_table.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::at;
using hvp::cuda::ProjectionEntry;
using hvp::cuda::ProjectionPlan;

py::tuple cuda_plan_reorthogonalize(const hvp::Table& table) {
    const std::vector<hvp::ReorthogonalizeStream> streams = hvp::streams_of(table);
    std::vector<ProjectionEntry> entries(streams.size());
    const ProjectionPlan plan = hvp::cuda::plan_projection(streams.data(), table.shape(0), entries.data());
    return py::make_tuple(plan, hvp::cuda::words_of(entries));
}

void cuda_reorthogonalize(const ProjectionPlan& plan, Address entries, Address coefficients,
                          std::int64_t coefficient_stride, Address norms, Address lost, Address workspace,
                          int device, Address stream) {
    hvp::cuda::check(hvp::cuda::reorthogonalize(
        plan,
        {at<ProjectionEntry>(entries), at<double>(coefficients), coefficient_stride, at<double>(norms),
         at<double>(lost), at<void>(workspace)},
        {device, at<void>(stream)}));
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
