// Binding of the embedding kernel.
#include "hvp/embedding.h"

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::Dtype;

void embedding_backward(int dtype, Address order, Address sorted_rows, std::int64_t tokens, Address grad,
                        std::int64_t table_rows, std::int64_t columns, Address table) {
    const Dtype type = hvp::checked_dtype(dtype);
    const std::int64_t table_elements = hvp::elements({table_rows, columns});
    const void* from = grad.required("grad", type, hvp::elements({tokens, columns}));
    const auto* rows = order.required<const std::int64_t>("order", tokens);
    const auto* sorted = sorted_rows.required<const std::int64_t>("sorted_rows", tokens);
    void* to = table.required("table", type, table_elements);
    if (table_elements == 0) return;
    py::gil_scoped_release release;
    for (std::int64_t i = 0; i < tokens; ++i)  // the kernel reads many numbers for each of these
        if (rows[i] < 0 || rows[i] >= tokens) hvp::refuse("Each of order must be the number of a token.");
    HVP_SELECT(embedding_backward)(type, rows, sorted, tokens, from, table_rows, columns, to);
}

}  // namespace

void register_embedding(py::module_& m) { m.def("embedding_backward", &embedding_backward); }
