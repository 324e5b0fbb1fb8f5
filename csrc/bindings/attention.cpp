// Bindings of the attention kernels: argument checks only.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "dispatch.h"
#include "hvp/attention.h"

namespace py = pybind11;

namespace {

using hvp::AttentionProblem;
using hvp::AttentionTensor;
using hvp::Dtype;

// Address and strides in elements (batch dimensions..., heads, rows, columns); None when absent.
using Tensor = std::optional<std::pair<hvp::Address, std::vector<std::int64_t>>>;
using Sizes = std::vector<std::int64_t>;

std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// Heads, rows and columns of a tensor of attention; the sizes of its batch are the problem's.
struct Matrix {
    std::int64_t heads, rows, columns;
};

AttentionTensor input(const char* name, const Tensor& t, const AttentionProblem& p, Dtype type,
                      const Matrix& matrix) {
    if (!t) return {};
    const auto& strides = t->second;
    const auto batch_dims = static_cast<std::size_t>(p.batch_dims);
    if (strides.size() != batch_dims + 3)
        hvp::refuse("Each tensor of attention needs one stride per batch dimension, and three more.");
    AttentionTensor result;
    std::vector<hvp::Dimension> dimensions;
    for (std::size_t d = 0; d < batch_dims; ++d) {
        result.batch_strides[d] = strides[d];
        dimensions.push_back({p.batch_sizes[d], strides[d]});
    }
    dimensions.push_back({matrix.heads, result.head_stride = strides[batch_dims]});
    dimensions.push_back({matrix.rows, result.row_stride = strides[batch_dims + 1]});
    dimensions.push_back({matrix.columns, result.column_stride = strides[batch_dims + 2]});
    result.data = t->first.required(name, type, hvp::reach(dimensions));
    return result;
}

AttentionTensor required(const char* name, const Tensor& t, const AttentionProblem& p, Dtype type,
                         const Matrix& matrix) {
    if (!t) hvp::refuse("Attention needs " + std::string(name) + ".");
    return input(name, t, p, type, matrix);
}

// No element may be written twice: for that, no stride is 0 along which there are several.
AttentionTensor output(const char* name, const Tensor& t, const AttentionProblem& p, Dtype type,
                       const Matrix& matrix) {
    const AttentionTensor result = input(name, t, p, type, matrix);
    bool shared = (matrix.heads > 1 && result.head_stride == 0) ||
                  (matrix.rows > 1 && result.row_stride == 0) ||
                  (matrix.columns > 1 && result.column_stride == 0);
    for (int d = 0; d < p.batch_dims; ++d)
        shared = shared || (p.batch_sizes[d] > 1 && result.batch_strides[d] == 0);
    if (t && shared) hvp::refuse("The elements of " + std::string(name) + " share memory.");
    return result;
}

Matrix of_query(const AttentionProblem& p) { return {p.heads, p.queries, p.width}; }
Matrix of_key(const AttentionProblem& p) { return {p.key_heads, p.keys, p.width}; }
Matrix of_value(const AttentionProblem& p) { return {p.key_heads, p.keys, p.value_width}; }
Matrix of_out(const AttentionProblem& p) { return {p.heads, p.queries, p.value_width}; }
Matrix of_mask(const AttentionProblem& p) { return {p.heads, p.queries, p.keys}; }
Matrix of_statistics(const AttentionProblem& p) { return {p.heads, p.queries, 2}; }

// sizes: batch sizes..., heads, key heads, queries, keys, width, value width.
void set_sizes(const Sizes& sizes, AttentionProblem& p) {
    if (sizes.size() < 6 || sizes.size() > 6 + static_cast<std::size_t>(hvp::kAttentionBatchDims))
        hvp::refuse("Attention takes between 0 and 6 batch dimensions.");
    p.batch_dims = static_cast<int>(sizes.size() - 6);
    std::int64_t groups = 1;
    for (int d = 0; d < p.batch_dims; ++d) {
        p.batch_sizes[d] = hvp::checked_size(sizes[d]);
        groups = hvp::checked_product(groups, larger(sizes[d], 1));
    }
    const std::int64_t* rest = sizes.data() + p.batch_dims;
    p.heads = hvp::checked_size(rest[0]);
    p.key_heads = hvp::checked_size(rest[1]);
    p.queries = hvp::checked_size(rest[2]);
    p.keys = hvp::checked_size(rest[3]);
    p.width = hvp::checked_size(rest[4]);
    p.value_width = hvp::checked_size(rest[5]);
    if (p.key_heads < 1 || p.heads % p.key_heads != 0)
        hvp::refuse("The number of query heads must be a multiple of the key heads'.");
    // What workspaces and loops are sized by must not overflow where a tensor has no element to show it.
    const std::int64_t heads = hvp::checked_product(groups, larger(p.heads, p.key_heads));
    (void)hvp::checked_product(heads, larger(p.queries, 1));
    (void)hvp::checked_product(larger(p.keys, 1), larger(larger(p.width, p.value_width), 64));
}

// inputs: query, key, value, mask, statistics. types: of the tensors, of the mask.
AttentionProblem problem(const Sizes& sizes, double scale, bool causal, std::pair<int, int> types,
                         const std::vector<Tensor>& inputs, bool fills_statistics) {
    if (inputs.size() != 5) hvp::refuse("Attention takes five inputs.");
    AttentionProblem p;
    set_sizes(sizes, p);
    p.scale = scale;
    p.causal = causal;
    p.type = hvp::checked_dtype(types.first);
    p.mask_type = hvp::checked_dtype(types.second, Dtype::boolean);
    p.query = required("query", inputs[0], p, p.type, of_query(p));
    p.key = required("key", inputs[1], p, p.type, of_key(p));
    p.value = required("value", inputs[2], p, p.type, of_value(p));
    p.mask = input("mask", inputs[3], p, p.mask_type, of_mask(p));
    const Dtype wide = hvp::accumulator_of(p.type);
    p.statistics = required("statistics", inputs[4], p, wide, of_statistics(p));
    if (fills_statistics) (void)output("statistics", inputs[4], p, wide, of_statistics(p));
    return p;
}

bool nothing_to_do(const AttentionProblem& p) {
    bool empty = p.heads == 0;
    for (int d = 0; d < p.batch_dims; ++d) empty = empty || p.batch_sizes[d] == 0;
    return empty;
}

void check_memory(bool done) {
    if (!done) throw std::bad_alloc();
}

void forward(const Sizes& sizes, double scale, bool causal, std::pair<int, int> types,
             const std::vector<Tensor>& inputs, const Tensor& out) {
    const AttentionProblem p = problem(sizes, scale, causal, types, inputs, true);
    if (!out) hvp::refuse("Attention needs out.");
    const AttentionTensor to = output("out", out, p, p.type, of_out(p));
    if (nothing_to_do(p)) return;
    const py::gil_scoped_release release;
    check_memory(HVP_SELECT(attention_forward)(p, to));
}

void backward(const Sizes& sizes, double scale, bool causal, std::pair<int, int> types,
              const std::vector<Tensor>& inputs, const Tensor& grad_out, const Tensor& grad_query,
              const Tensor& grad_key, const Tensor& grad_value) {
    const AttentionProblem p = problem(sizes, scale, causal, types, inputs, false);
    hvp::AttentionGradients g;
    g.grad_out = required("grad_out", grad_out, p, p.type, of_out(p));
    g.grad_query = output("grad_query", grad_query, p, p.type, of_query(p));
    g.grad_key = output("grad_key", grad_key, p, p.type, of_key(p));
    g.grad_value = output("grad_value", grad_value, p, p.type, of_value(p));
    if (nothing_to_do(p)) return;
    const py::gil_scoped_release release;
    check_memory(HVP_SELECT(attention_backward)(p, g));
}

// given: grad_out, tangents of query, key, value. outputs: for query, key, value, grad_out.
void second(const Sizes& sizes, double scale, bool causal, std::pair<int, int> types,
            const std::vector<Tensor>& inputs, const std::vector<Tensor>& given,
            const std::vector<Tensor>& outputs) {
    const AttentionProblem p = problem(sizes, scale, causal, types, inputs, false);
    if (given.size() != 4 || outputs.size() != 4)
        hvp::refuse("The second pass of attention takes four given tensors and four outputs.");
    if (!given[0] && (outputs[0] || outputs[1] || outputs[2]))
        hvp::refuse("The outputs for query, key and value need grad_out.");
    hvp::AttentionSecond s;
    s.grad_out = input("grad_out", given[0], p, p.type, of_out(p));
    s.tangent_query = input("the tangent of query", given[1], p, p.type, of_query(p));
    s.tangent_key = input("the tangent of key", given[2], p, p.type, of_key(p));
    s.tangent_value = input("the tangent of value", given[3], p, p.type, of_value(p));
    s.out_query = output("the output for query", outputs[0], p, p.type, of_query(p));
    s.out_key = output("the output for key", outputs[1], p, p.type, of_key(p));
    s.out_value = output("the output for value", outputs[2], p, p.type, of_value(p));
    s.out_grad_out = output("the output for grad_out", outputs[3], p, p.type, of_out(p));
    if (nothing_to_do(p)) return;
    const py::gil_scoped_release release;
    check_memory(HVP_SELECT(attention_second)(p, s));
}

}  // namespace

void register_attention(py::module_& m) {
    m.def("attention_forward", &forward);
    m.def("attention_backward", &backward);
    m.def("attention_second", &second);
}
