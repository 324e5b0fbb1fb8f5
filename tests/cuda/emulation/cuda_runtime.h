// Stands in for <cuda_runtime.h> where tests compile the project's .cu sources with a C++ compiler: one fiber
// per CUDA thread, blocks one after another, device memory is host memory. HVP_EMULATION_ORDER (fwd, rev or
// rand:SEED) chooses the order in which the threads of a block run between barriers; a correct kernel gives
// the same bits in every order. x86-64 only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __device__
#define __host__
#define __global__
#define __shared__  // kernels use one array, `extern __shared__ double shared_memory[]`; emulation.cpp
                    // defines it
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

// Of the thread that is running.
struct Coordinates {
    unsigned x;
};
extern Coordinates threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

void run(unsigned blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& kernel);
void block_barrier(const void* site);
// Hands `bits` to the warp and returns what lane `from` handed over.
std::uint64_t exchange(unsigned mask, std::uint64_t bits, int from);
int lane();

}  // namespace emulation

// The address of a static names the place in the source: threads must meet at one and the same barrier.
#define __syncthreads()                  \
    do {                                 \
        static const char site = 0;      \
        emulation::block_barrier(&site); \
    } while (false)

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value,
                  "not a value that lanes can exchange");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = emulation::exchange(mask, bits, emulation::lane() ^ flip);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline double __hiloint2double(int high, int low) {
    const std::uint64_t bits =
        static_cast<std::uint64_t>(static_cast<std::uint32_t>(high)) << 32 | static_cast<std::uint32_t>(low);
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline unsigned long long atomicMin(unsigned long long* address, unsigned long long value) {
    unsigned long long old = __atomic_load_n(address, __ATOMIC_RELAXED);
    while (value < old &&
           !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
    return old;
}

// ---- The part of the runtime's host interface that the launchers use
// -----------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
using cudaStream_t = void*;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
};

namespace emulation {
inline cudaStream_t last_stream = nullptr;  // of the latest launch
}  // namespace emulation

inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "invalid configuration argument";
}
// There is one device.
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
// One processor only, so that blocks take several tasks each.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
    return *value = 1, cudaSetDevice(device);
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
    const unsigned blocks = config->gridDim.x, threads = config->blockDim.x;
    if (blocks < 1 || threads < 1 || threads > 1024 || config->dynamicSmemBytes > (48u << 10))
        return cudaErrorInvalidConfiguration;
    emulation::last_stream = config->stream;
    emulation::run(blocks, threads, config->dynamicSmemBytes, [&] { kernel(arguments...); });
    return cudaSuccess;
}
