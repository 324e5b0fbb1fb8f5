// Gauss quadrature of many symmetric tridiagonal matrices, one thread each.
#include <cuda_runtime.h>

#include "launch.h"
#include "tridiagonal_kernels.cuh"

namespace hvp {
namespace cuda {
namespace {

std::int64_t blocks_of(std::int64_t num) { return (num + kTridiagonalThreads - 1) / kTridiagonalThreads; }

}  // namespace

std::int64_t tridiagonal_workspace_bytes(std::int64_t num, std::int64_t m) {
    return static_cast<std::int64_t>(sizeof(double)) * blocks_of(num) * 3 * m * kWarpSize;
}

const char* tridiagonal_quadrature(std::int64_t num, std::int64_t m, const TridiagonalArrays& arrays,
                                   Queue queue) {
    const DeviceGuard guard(queue);
    cudaError_t error = guard.error();
    if (error == cudaSuccess) error = launch(clear_failed, 1, 1, 0, queue, arrays.failed);
    if (error == cudaSuccess)
        error = launch(quadrature, static_cast<unsigned>(blocks_of(num)), kTridiagonalThreads, 0, queue, num,
                       m, arrays);
    return text_of(error);
}

}  // namespace cuda
}  // namespace hvp
