// The CUDA part of hvp_engine._native alone: its bindings as they are, over the emulated launchers.
#include <cuda_runtime.h>

#include "cuda.cpp"  // csrc/bindings

PYBIND11_MODULE(emulated_cuda, m) {
    register_cuda(m);
    m.def("last_stream", [] { return reinterpret_cast<Address>(emulation::last_stream); });
}
