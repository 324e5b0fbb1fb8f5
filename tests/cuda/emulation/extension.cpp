// The CUDA part of hvp_engine._native alone: its bindings as they are, over the emulated launchers.
#include <cuda_runtime.h>

// From csrc/bindings.
#include "cuda_device.cpp"
#include "cuda_lanczos_step.cpp"
#include "cuda_reorthogonalize.cpp"
#include "cuda_tridiagonal.cpp"

PYBIND11_MODULE(emulated_cuda, m) {
    register_cuda_device(m);
    register_cuda_lanczos_step(m);
    register_cuda_reorthogonalize(m);
    register_cuda_tridiagonal(m);
    m.def("last_stream", [] { return reinterpret_cast<std::uintptr_t>(emulation::last_stream); });
}
