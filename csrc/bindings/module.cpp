// The extension module hvp_engine._native: each kernel family registers itself; nothing is computed here.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void register_allocator(py::module_& m);
void register_reorthogonalize(py::module_& m);
void register_activations(py::module_& m);
void register_normalize(py::module_& m);
void register_attention(py::module_& m);
void register_cross_entropy(py::module_& m);
void register_embedding(py::module_& m);
void register_packed_symmetric(py::module_& m);
void register_runtime(py::module_& m);
void register_softmax(py::module_& m);
void register_tridiagonal(py::module_& m);
#ifdef HVP_ENGINE_WITH_CUDA
void register_cuda_device(py::module_& m);
void register_cuda_lanczos_step(py::module_& m);
void register_cuda_reorthogonalize(py::module_& m);
void register_cuda_tridiagonal(py::module_& m);
#endif

namespace {
// Raised whenever a binding changes its signature; hvp_engine/kernels/loader.py refuses any other value.
constexpr int kAbiVersion = 6;
}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native kernels of hvp_engine. Arguments are raw addresses and sizes; use hvp_engine.kernels.";
    m.attr("abi_version") = kAbiVersion;
    register_allocator(m);
    register_reorthogonalize(m);
    register_activations(m);
    register_normalize(m);
    register_attention(m);
    register_cross_entropy(m);
    register_embedding(m);
    register_packed_symmetric(m);
    register_runtime(m);
    register_softmax(m);
    register_tridiagonal(m);
#ifdef HVP_ENGINE_WITH_CUDA
    register_cuda_device(m);
    register_cuda_lanczos_step(m);
    register_cuda_reorthogonalize(m);
    register_cuda_tridiagonal(m);
    m.attr("cuda_built") = true;
#else
    m.attr("cuda_built") = false;
#endif
}
