// What the driver says about the machine's devices.
#include "hvp/cuda/device.h"

#include <cuda_runtime.h>

namespace hvp {
namespace cuda {

const char* why_not() {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    return devices == 0 ? "the driver finds no device" : nullptr;
}

}  // namespace cuda
}  // namespace hvp
