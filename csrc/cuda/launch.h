// Host side of a launch: device guard, grid size, error text.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "hvp/cuda/device.h"

namespace hvp {
namespace cuda {

// Makes the queue's device the current one while it lives. The current device of the caller, whose copy of
// the runtime may be another one, is restored.
class DeviceGuard {
  public:
    explicit DeviceGuard(const Queue& queue) : wanted_(queue.device) {
        error_ = cudaGetDevice(&before_);
        if (error_ == cudaSuccess && before_ != wanted_) error_ = cudaSetDevice(wanted_);
    }
    ~DeviceGuard() {
        if (error_ == cudaSuccess && before_ != wanted_) (void)cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
    cudaError_t error() const { return error_; }

  private:
    int wanted_;
    int before_ = -1;
    cudaError_t error_;
};

inline const char* text_of(cudaError_t error) {
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Blocks for `tasks` that blocks take in strides: as many as the device holds at once, never more than tasks.
inline cudaError_t grid_size(const Queue& queue, std::int64_t tasks, int blocks_per_processor,
                             unsigned& blocks) {
    int processors = 0;
    const cudaError_t error =
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, queue.device);
    const std::int64_t most = static_cast<std::int64_t>(processors) * blocks_per_processor;
    blocks = static_cast<unsigned>(tasks < most ? tasks : most);
    return error;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), unsigned blocks, int threads, std::int64_t shared_bytes,
                   const Queue& queue, Arguments... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
    config.stream = static_cast<cudaStream_t>(queue.stream);
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace cuda
}  // namespace hvp
