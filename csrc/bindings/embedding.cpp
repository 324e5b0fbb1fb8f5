// Binding of the embedding kernel.
#include "hvp/embedding.h"

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using hvp::Address;
using hvp::at;
using hvp::check_sizes;
using hvp::checked_dtype;

void embedding_backward(int dtype, Address order, Address sorted_rows, std::int64_t tokens, Address grad,
                        std::int64_t table_rows, std::int64_t columns, Address table) {
    check_sizes({tokens, table_rows, columns});
    py::gil_scoped_release release;
    HVP_SELECT(embedding_backward)
    (checked_dtype(dtype), at<const std::int64_t>(order), at<const std::int64_t>(sorted_rows), tokens,
     at<const void>(grad), table_rows, columns, at<void>(table));
}

}  // namespace

void register_embedding(py::module_& m) { m.def("embedding_backward", &embedding_backward); }
