// Bindings of the attention kernels: argument checks only.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <new>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "arguments.h"
#include "dispatch.h"
#include "hvp/attention.h"

namespace py = pybind11;

namespace {

// Address and strides in elements (batch dimensions..., heads, rows, columns); None when absent.
using Tensor = std::optional<std::pair<std::uintptr_t, std::vector<std::int64_t>>>;
using Sizes = std::vector<std::int64_t>;

hvp::AttentionTensor tensor(const Tensor& t, int batch_dims) {
    hvp::AttentionTensor result;
    if (!t) return result;
    const auto& strides = t->second;
    if (strides.size() != static_cast<std::size_t>(batch_dims) + 3) {
        throw std::invalid_argument(
            "Each tensor of attention needs one stride per batch dimension, and three more.");
    }
    result.data = reinterpret_cast<void*>(t->first);
    for (int d = 0; d < batch_dims; ++d) result.batch_strides[d] = strides[d];
    result.head_stride = strides[batch_dims];
    result.row_stride = strides[batch_dims + 1];
    result.column_stride = strides[batch_dims + 2];
    return result;
}

// sizes: batch sizes..., heads, key heads, queries, keys, width, value width.
// inputs: query, key, value, mask, statistics. types: of the tensors, of the mask.
hvp::AttentionProblem problem(const Sizes& sizes, double scale, bool causal, std::pair<int, int> types,
                              const std::vector<Tensor>& inputs) {
    const int batch_dims = static_cast<int>(sizes.size()) - 6;
    if (batch_dims < 0 || batch_dims > hvp::kAttentionBatchDims) {
        throw std::invalid_argument("Attention takes between 0 and 6 batch dimensions.");
    }
    if (inputs.size() != 5) throw std::invalid_argument("Attention takes five inputs.");
    hvp::AttentionProblem p;
    p.batch_dims = batch_dims;
    for (int d = 0; d < batch_dims; ++d) p.batch_sizes[d] = sizes[d];
    const std::int64_t* rest = sizes.data() + batch_dims;
    p.heads = rest[0];
    p.key_heads = rest[1];
    p.queries = rest[2];
    p.keys = rest[3];
    p.width = rest[4];
    p.value_width = rest[5];
    if (p.key_heads < 1 || p.heads % p.key_heads != 0) {
        throw std::invalid_argument("The number of query heads must be a multiple of the key heads'.");
    }
    p.scale = scale;
    p.causal = causal;
    p.type = hvp::checked_dtype(types.first);
    p.mask_type = hvp::checked_dtype(types.second, hvp::Dtype::boolean);
    p.query = tensor(inputs[0], batch_dims);
    p.key = tensor(inputs[1], batch_dims);
    p.value = tensor(inputs[2], batch_dims);
    p.mask = tensor(inputs[3], batch_dims);
    p.statistics = tensor(inputs[4], batch_dims);
    return p;
}

void check_memory(bool done) {
    if (!done) throw std::bad_alloc();
}

void forward(const Sizes& sizes, double scale, bool causal, std::pair<int, int> types,
             const std::vector<Tensor>& inputs, const Tensor& out) {
    const hvp::AttentionProblem p = problem(sizes, scale, causal, types, inputs);
    const hvp::AttentionTensor to = tensor(out, p.batch_dims);
    const py::gil_scoped_release release;
    check_memory(HVP_SELECT(attention_forward)(p, to));
}

void backward(const Sizes& sizes, double scale, bool causal, std::pair<int, int> types,
              const std::vector<Tensor>& inputs, const Tensor& grad_out, const Tensor& grad_query,
              const Tensor& grad_key, const Tensor& grad_value) {
    const hvp::AttentionProblem p = problem(sizes, scale, causal, types, inputs);
    hvp::AttentionGradients g;
    g.grad_out = tensor(grad_out, p.batch_dims);
    g.grad_query = tensor(grad_query, p.batch_dims);
    g.grad_key = tensor(grad_key, p.batch_dims);
    g.grad_value = tensor(grad_value, p.batch_dims);
    const py::gil_scoped_release release;
    check_memory(HVP_SELECT(attention_backward)(p, g));
}

// given: grad_out, tangents of query, key, value. outputs: for query, key, value, grad_out.
void second(const Sizes& sizes, double scale, bool causal, std::pair<int, int> types,
            const std::vector<Tensor>& inputs, const std::vector<Tensor>& given,
            const std::vector<Tensor>& outputs) {
    const hvp::AttentionProblem p = problem(sizes, scale, causal, types, inputs);
    if (given.size() != 4 || outputs.size() != 4) {
        throw std::invalid_argument(
            "The second pass of attention takes four given tensors and four outputs.");
    }
    if (!given[0] && (outputs[0] || outputs[1] || outputs[2])) {
        throw std::invalid_argument("The outputs for query, key and value need grad_out.");
    }
    hvp::AttentionSecond s;
    s.grad_out = tensor(given[0], p.batch_dims);
    s.tangent_query = tensor(given[1], p.batch_dims);
    s.tangent_key = tensor(given[2], p.batch_dims);
    s.tangent_value = tensor(given[3], p.batch_dims);
    s.out_query = tensor(outputs[0], p.batch_dims);
    s.out_key = tensor(outputs[1], p.batch_dims);
    s.out_value = tensor(outputs[2], p.batch_dims);
    s.out_grad_out = tensor(outputs[3], p.batch_dims);
    const py::gil_scoped_release release;
    check_memory(HVP_SELECT(attention_second)(p, s));
}

}  // namespace

void register_attention(py::module_& m) {
    m.def("attention_forward", &forward);
    m.def("attention_backward", &backward);
    m.def("attention_second", &second);
}
